"""What edits, the server's news and shares mean for names and directories."""
