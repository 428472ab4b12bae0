"""A service's settings: fields, where their values come from, and how they are checked.

May import process and the modules below it.
"""
