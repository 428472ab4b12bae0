"""The messages and stubs of corral.gallery.v1, generated."""
