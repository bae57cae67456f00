"""The operator's calls to Temporal, by raw RPC."""
