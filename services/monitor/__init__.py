"""Reports what loaded models do and use, and shuts them down.

May import common and no other service. Only `rpc` and `wiring` import gRPC.
"""
