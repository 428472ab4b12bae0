"""Backends with nothing behind them, to measure what is in front: this one in Python, another in ../native."""
