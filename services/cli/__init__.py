"""`corral`, the command line: a client of the services' protos.

`commands` holds what can be typed, one module for each command: options and help, without gRPC, so
that help and completion start fast. `actions` has a module of the same name that does the work. Below
are `status`, `models` and `tracking`, which several actions use; `invoke`, which runs an action and
turns its failures into exit codes; `stack`, the processes of `corral up`; `client` and `display`.
"""
