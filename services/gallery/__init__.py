"""The gallery: what can be installed, what is installed, and the work in progress."""
