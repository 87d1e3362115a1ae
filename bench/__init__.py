"""Figures, ours and a peer's, from one machine in one run: `python -m bench`, `make bench`."""
