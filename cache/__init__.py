"""What this machine remembers.

`cache`, `eviction`, `readahead` and `reader` are the rebuildable half: content fetched from the
server, thrown away when in doubt. `database`, `tree`, `journal`, `layers`, `spool`, `contents`,
`merge`, `conflicts`, `resolver`, `encode`, `uploader`, `collector` and `replayer` are the half
that must not be lost: the tree as this device sees it, and the local changes that the server does
not have yet.

Nothing here knows of FUSE; what the kernel must be told goes through `merge.Invalidator`, which
`mount` implements.
"""
