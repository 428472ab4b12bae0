"""The gRPC side of every service: server, interceptors, status table, channels, health.

The only part of common that imports gRPC; may import everything else in common.
"""
