"""What the commands do. Imported when a command runs, never for `--help`."""
