"""What a connection and a request meet before any endpoint: TLS, limits, checks, logs."""
