"""The HTTP endpoint that Prometheus scrapes.

May import values.
"""
