"""The measurements: instruments, what other processes sent, and bounds on both.

May import state and forwarding.
"""
