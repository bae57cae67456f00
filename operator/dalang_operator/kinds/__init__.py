"""One folder per kind, all with the same files: `plan.py` decides, `reconcile.py` observes and executes."""
