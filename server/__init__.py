"""The service: API, metadata, blobs, edge and change feed, in one process.

    main      process: lock, socket, signals      app       ASGI: edge, content, API
    service   every part, and which thread does what
    settings  what an operator can choose         metrics, gauges  what Prometheus sees
    datadir   whose the data is, who may read it

    front/    what a connection and a request meet before any endpoint
    api/      thin Litestar handlers
    people/   accounts, devices, tokens, roles, grants, audit
    drive/    operations on the tree and their commit, versions, history, trash
    changes/  the change feed: views, cursors, pages, fan-out
    storage/  stored objects, signed URLs, uploads, quota, verification
    public/   links for people without an account
    upkeep/   garbage collection, fsck, backup and restore
    metadata/ tables, migrations, transactions

Imports from `remote` only its pure modules.
"""
