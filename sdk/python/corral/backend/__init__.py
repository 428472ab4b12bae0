"""The messages and stubs of corral.backend, generated."""
