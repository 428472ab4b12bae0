"""Starting and keeping the four services as child processes, for `corral up`."""
