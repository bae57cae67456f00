"""AgentSession: a conversation that lasts; one workflow, to which its runs are sent."""
