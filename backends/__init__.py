"""The model backends that Corral brings along, each a program of its own."""
