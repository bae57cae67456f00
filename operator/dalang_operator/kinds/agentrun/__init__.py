"""AgentRun: one task given to an agent; one workflow."""
