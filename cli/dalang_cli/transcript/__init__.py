"""`dalang transcript`: all that was said in a run or a session, from the history that Temporal keeps.

No worker is needed, as one would be for a query: a pool at zero pods has none, and a query wakes nobody.
"""
