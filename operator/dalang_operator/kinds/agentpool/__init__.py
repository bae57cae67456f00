"""AgentPool: what the agents of a namespace run in; one Deployment and one task queue."""
