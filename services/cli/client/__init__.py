"""Connections to the services, and where the services are.

May import failures.
"""
