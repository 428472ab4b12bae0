"""The gRPC side of the monitor: its own API, its client of the loader, and conversion.

May import status and sampler.
"""
