"""Accounts, their devices, tokens and passwords."""
