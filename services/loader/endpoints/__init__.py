"""The data plane spliced: an address for each model, connected to its instance frame by frame.

May import loader and everything below it; knows HTTP/2, but no gRPC library.
"""
