"""`dalang chat`: a conversation on the terminal, over an AgentSession and the AgentRuns that are its exchanges.

All of it is in the cluster: the command may end at any time, and another goes on where it was.
"""
