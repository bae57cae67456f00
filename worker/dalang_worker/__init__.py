"""The worker: a Temporal worker that runs agents. It holds no Kubernetes credential."""
