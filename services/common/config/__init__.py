"""A service's settings: fields, where their values come from, and how they are checked.

May import tasks, process and the plain modules of common.
"""
