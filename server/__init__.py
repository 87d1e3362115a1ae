"""The service: API, metadata, blobs, edge and change feed, in one process.

    main       process: lock, socket, signals      app       ASGI: edge, content, API
    service    every part, and which thread does what
    settings   what an operator can choose         metrics, gauges  what Prometheus sees
    datadir    whose the data is, who may read it  durable   files whole or not at all

    http/         everything between a socket and an endpoint
    api/          thin handlers
    permissions/  who is asking, what they may do, the audit log
    accounts/     accounts, devices, tokens, passwords
    drive/        operations on the tree and their commit, versions, trash, sharing
    changes/      the change feed: views, cursors, pages, fan-out
    uploads/      sessions, leases, quota, arrivals, verification
    storage/      stored objects, signed URLs, the edge
    links/        links for people without an account
    maintenance/  garbage collection, fsck, backup and restore, administration
    metadata/     tables, migrations, transactions

Imports from `remote` only `remote.protocol`.
"""
