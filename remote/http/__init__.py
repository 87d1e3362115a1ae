"""Talking HTTP: the API, block bodies, the WebSocket, TLS to a pinned key, who is reachable."""
