"""The work of each command, in a module of the command's name. Not imported for `--help`.

May import everything but commands and app.
"""
