"""Installs models from galleries, as long-running operations, and lists what is installed.

May import common and no other service. Only `rpc` and `wiring` import gRPC.
"""
