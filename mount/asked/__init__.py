"""What a running mount does for a command: the control socket, its messages, every answer."""
