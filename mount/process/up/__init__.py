"""`nearline up`: a server, an account and a mount in one command."""
