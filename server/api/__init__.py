"""The v1 endpoints: each asks a module of the service. No rules live here."""
