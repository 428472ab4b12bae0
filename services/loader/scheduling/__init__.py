"""Decides which models may be loaded and which are evicted; watches idle, stuck and oversized ones.

May import instances, options and everything below them.
"""
