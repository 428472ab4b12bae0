"""The four services as child processes, started and kept running for `corral up`.

May import client, display and failures.
"""
