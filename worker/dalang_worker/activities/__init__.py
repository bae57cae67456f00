"""The activities: everything of a run that waits on others or does not give the same answer twice."""
