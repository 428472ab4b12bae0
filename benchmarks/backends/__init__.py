"""Backends without a model, to measure what is in front of them: one here in Python, another in ../native."""
