"""What keeps a data directory sound: garbage collection, checks, backup and restore."""
