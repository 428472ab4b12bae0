"""Collects what every service measures, and exports it to Prometheus and over OTLP.

May import common and no other service. Only `rpc` and `wiring` import gRPC.
"""
