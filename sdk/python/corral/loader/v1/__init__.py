"""The messages and stubs of corral.loader.v1, generated."""
