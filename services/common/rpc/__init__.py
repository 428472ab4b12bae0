"""The gRPC side of every service: server, interceptors, status table, channels, health.

The only package of common that imports gRPC; may import everything else in common.
"""
