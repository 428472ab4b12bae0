"""Which backends are installed, and which of them can hold a model.

May import models, devices, processes, logs and lifecycle.
"""
