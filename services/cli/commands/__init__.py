"""What can be typed: one module a command, with its options and help. Light to import."""
