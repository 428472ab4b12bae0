"""The galleries' indexes: read, cached, searched.

May import sources and everything below it.
"""
