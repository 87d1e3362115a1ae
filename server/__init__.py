"""The service: API, metadata, blobs, edge and change feed, in one process.

    main      process: lock, socket, signals          app      ASGI: dispatch, logs, metrics
    api/      thin Litestar handlers                   edge     signed PUT and GET of objects
    commits   one transaction per batch of mutations   tree     what each operation does
    versions  manifests and their chunks               uploads  upload sessions
    leases    what a session holds of a drive          quota    room in a drive
    intake    presigned PUTs into the store            arrivals chunks becoming uploaded
    verification  is an object what its id says        reception  who notes and verifies, and when
    limits    rates and places
    listing   reading the tree                         signer   signed URLs
    access    who may do what                          accounts people, devices, tokens
    feed      cursors, pages, fan-out                  blobs    where stored objects live
    schema    the tables                               db       engine, transactions, migration

Imports from `remote` only its pure modules.
"""
