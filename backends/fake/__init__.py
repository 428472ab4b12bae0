"""A backend without an engine: it keeps the contract, or breaks it in every way that is configured."""

NAME = "fake"
VERSION = "0.1.0"
