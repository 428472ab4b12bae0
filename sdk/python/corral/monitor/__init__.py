"""The messages and stubs of corral.monitor, generated."""
