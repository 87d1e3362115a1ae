"""Links for people without an account, and content put together for them."""
