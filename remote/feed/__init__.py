"""Following the server's change feed."""
