"""The spliced data plane: an address per model, connected to its instance frame by frame.

May import loader and everything below it; knows HTTP/2, but no gRPC library.
"""
