"""What carries the reconciles: cache, queue, workers, resync, Lease, sweep, metrics, health. None of it knows a kind's rules."""
