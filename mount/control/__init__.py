"""The control socket: its messages, its two ends, and what each command does in a mount."""
