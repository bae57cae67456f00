"""Agent: a definition; nothing runs for it until a run names it."""
