"""The messages and stubs of corral.monitor.v1, generated."""
