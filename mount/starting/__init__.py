"""From a command to a running mount and back: checks, processes, unmounting, `up`."""
