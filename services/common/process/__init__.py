"""A service as a process: event loop, logging, memory, listening sockets, stopping.

May import the plain modules of common.
"""
