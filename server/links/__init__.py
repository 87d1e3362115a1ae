"""Links for people without an account: their pages, content and zips."""
