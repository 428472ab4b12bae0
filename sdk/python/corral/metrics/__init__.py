"""The messages and stubs of corral.metrics, generated."""
