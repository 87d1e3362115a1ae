"""Contents of files that were written here: layers over a version, the spool, snapshots."""
