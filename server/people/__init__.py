"""Accounts, devices, tokens, roles, grants, and the log of who did what."""
