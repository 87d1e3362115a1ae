"""Names and directories: local edits, the server's news, shares."""
