"""Making the state usable again after power loss or damage."""
