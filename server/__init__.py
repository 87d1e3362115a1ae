"""The service: API, metadata, blobs, edge and change feed, in one process.

    main      process: lock, socket, signals          app      ASGI: dispatch, logs, metrics
    api/      thin Litestar handlers                   edge     signed PUT and GET of objects
    commits   one transaction per batch of mutations   tree     what each operation does
    versions  manifests and their chunks               uploads  upload sessions and leases
    arrivals  chunks becoming uploaded                 limits   password tries
    listing   reading the tree                         signer   signed URLs
    access    who may do what                          accounts people, devices, tokens
    feed      cursors, pages, fan-out                  blobs    where stored objects live
    schema    the tables                               db       engine, transactions, migration

Imports from `remote` only its pure modules.
"""
