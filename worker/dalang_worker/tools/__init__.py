"""Loading tool modules, and running tools where they cannot hold up the worker."""
