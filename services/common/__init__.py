"""What the services share: gRPC server and clients, settings, logging, errors and small helpers.

May import no service. `rpc` is the only package in it that imports gRPC.
"""
