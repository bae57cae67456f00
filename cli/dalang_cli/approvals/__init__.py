"""`dalang approvals`, `dalang approve` and `dalang reject`: a human sees what waits, in full, and decides.

They do no more than `kubectl` could, with the caller's own kubeconfig; the API server proves who decides.
"""
