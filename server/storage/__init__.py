"""Bytes: stored objects, signed URLs, uploads, leases, quota, arrival and verification."""
