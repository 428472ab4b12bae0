"""`corral`: the command line. A client of the protos only, and the supervisor of the four services."""
