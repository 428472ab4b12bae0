"""Decides which calls of a model run, wait or are refused, and hands out their leases.

May import instances, options and everything below them.
"""
