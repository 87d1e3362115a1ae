"""A long line in front of a server: one and the same before every peer.

`schedule` and `requests` are pure, `proxy` is the process that carries the bytes, `line` starts it.
"""
