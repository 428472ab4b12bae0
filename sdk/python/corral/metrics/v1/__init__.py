"""The messages and stubs of corral.metrics.v1, generated."""
