"""The control plane: LoaderService over gRPC, and conversion between messages and domain types.

May import every package of the loader except gateway and endpoints.
"""
