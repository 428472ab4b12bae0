"""From a request to exactly what will be installed: the entry, its merged configuration, its files.

May import download and everything below it.
"""
