"""RAM and GPUs: how much memory each has, and what the hardware can compute with.

May import no other package of the loader.
"""
