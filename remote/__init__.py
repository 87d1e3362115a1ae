"""The wire: what client and server say to each other, and the client's side of saying it.

`ids`, `messages`, `errors`, `content`, `codec`, `chunking`, `signing` and `backoff` are pure and
are shared with the server. `api`, `download`, `upload` and `subscriber` do I/O (trio, httpx) and
are the client's alone. Nothing here knows of the cache, the journal or FUSE.
"""
