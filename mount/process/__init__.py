"""Processes: starting a mount's, finding, checking and ending it."""
