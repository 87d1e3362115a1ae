"""The state database: its schema, the tree, the journal, manifests, and what is durable when."""
