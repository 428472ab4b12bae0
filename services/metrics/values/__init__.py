"""The measurements: instruments, metrics received from other processes, and limits on both.

May import no other part of the service.
"""
