"""The tables, their migrations, and transactions on them."""
