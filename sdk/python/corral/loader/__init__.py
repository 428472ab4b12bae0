"""The messages and stubs of corral.loader, generated."""
