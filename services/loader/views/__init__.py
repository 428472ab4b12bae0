"""What clients see of models: immutable views, the change log, watches, capacity and forecasts.

May import supervision and everything below it.
"""
