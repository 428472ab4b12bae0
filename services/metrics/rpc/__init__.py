"""The gRPC side of the metrics service: its own API, OTLP in and out, and conversion.

May import every package of the service.
"""
