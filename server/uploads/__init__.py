"""Chunks on their way in: sessions, leases, quota, arrivals, verification."""
