"""Installs models: plans, downloads, verifies and puts files in place.

May import resolve and everything below it.
"""
