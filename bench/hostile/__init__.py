"""One who attacks a server, beside somebody who works on it.

`python -m bench.hostile` starts a server, lets an account work on it alone, then beside each attack
of `attacks` in turn, and compares: how long its requests take, what it is refused, how much memory
the server has, and at the end whether everything that was acknowledged is there.
"""
