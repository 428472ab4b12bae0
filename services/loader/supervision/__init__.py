"""One supervisor per model: feeds the lifecycle with events and performs its effects.

May import admission, scheduling and everything below them.
"""
