"""What client and server say to each other: all that the server imports of `remote`."""
