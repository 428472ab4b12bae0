"""The gRPC side of the metrics service: its own API, OTLP in and out, and conversion.

May import everything in the service except wiring and config.
"""
