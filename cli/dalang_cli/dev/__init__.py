"""`dalang dev`: a real Kubernetes API, Temporal and the operator on this machine, without Docker and without root."""
