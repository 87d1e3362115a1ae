"""Everything that this machine remembers.

    metadata/   the state database: tree, journal, manifests
    namespace/  edits made here, news of the server, shares: what they mean for names
    files/      contents that were written here: layers, spool, snapshots
    blocks/     what was fetched from the server
    sync/       sending what was changed here
    recovery/   making the state usable again after power loss or damage

`blocks` is rebuildable, and thrown away when in doubt. All else must not be lost: the tree as this
device sees it, and the local changes that the server does not have yet. Nothing here knows of FUSE;
what the kernel must be told goes through `metadata.invalidation.Invalidator`, which `mount`
implements.
"""
