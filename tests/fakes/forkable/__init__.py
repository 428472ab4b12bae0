"""A program for the fork server: says what it is, then does as it is told."""
