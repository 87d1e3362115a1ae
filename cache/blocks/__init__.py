"""The block cache: what was fetched, what is fetched next, and what makes room."""
