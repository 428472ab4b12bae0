"""The messages and stubs of corral.gallery, generated."""
