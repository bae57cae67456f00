"""The operator's own small way to talk to the API server: one client, its errors, apply, and status writes."""
