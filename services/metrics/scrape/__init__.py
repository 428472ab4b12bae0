"""The HTTP endpoint that Prometheus scrapes.

May import values, state and forwarding.
"""
