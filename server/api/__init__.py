"""The v1 endpoints: each decodes, asks a module of the service, and encodes. No rules live here."""
