"""AgentSchedule: one Temporal Schedule each, whose firings create AgentRuns."""
