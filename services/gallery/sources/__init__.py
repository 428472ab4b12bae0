"""Where files come from: each URI scheme turned into an address to download or a file to copy.

May import operations, threads and errors.
"""
