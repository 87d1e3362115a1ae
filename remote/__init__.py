"""The protocol between client and server, and the client's side of speaking it.

    protocol/  messages, errors, content, chunks, signatures: pure, shared with the server
    http/      requests, block bodies, the WebSocket, who is reachable
    transfer/  downloads and uploads
    feed/      following the server's change feed

Nothing here knows of the cache, the journal or FUSE.
"""
