"""The caller, their permissions, and the record of what they did."""
