"""How much memory a model needs: estimated before a load, measured after it, and remembered.

May import models, devices, processes, logs and lifecycle.
"""
