"""A program for the fork server: prints what it is, then follows its arguments."""
