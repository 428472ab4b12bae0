"""The options that a backend is given at LoadModel, and where each value comes from.

May import backends, memory, live_settings and everything below them.
"""
