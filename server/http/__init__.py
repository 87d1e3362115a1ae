"""Everything between a socket and an endpoint: connections, admission, limits, TLS, logs."""
