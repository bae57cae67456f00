"""`make bench`: AgentRuns through the API server against a bare Temporal workflow that makes the same model call."""
