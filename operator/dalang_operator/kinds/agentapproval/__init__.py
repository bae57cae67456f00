"""AgentApproval: one tool call, or one answer, that waits for a human."""
