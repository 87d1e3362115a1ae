"""Looking after the data: garbage collection, fsck, backup, restore, administration."""
