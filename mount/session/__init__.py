"""A mount's connection to its drive, and how applications wait for it."""
