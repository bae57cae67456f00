"""The agent loop, as async functions over ports. No Temporal, no HTTP, no provider: a unit test is thirty lines."""
