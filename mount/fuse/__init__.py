"""The kernel's side: FUSE operations, attributes, invalidation, the handshake."""
