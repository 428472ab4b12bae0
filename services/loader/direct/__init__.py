"""Leases for clients that call a backend's own address, bypassing the loader.

May import loader and everything below it.
"""
