"""A backend without an engine: it keeps the contract, and breaks it in every way it is told to."""

NAME = "fake"
VERSION = "0.1.0"
