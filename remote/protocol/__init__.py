"""The language of client and server: all that the server imports of `remote`."""
