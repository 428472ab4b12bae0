"""Finding, listing and loading models, and explaining a failed load, for all commands that need it.

May import tracking, client, display and failures.
"""
