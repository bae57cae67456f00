"""AgentModel: a model endpoint; nothing runs for it."""
