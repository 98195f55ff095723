"""Models: packed trees of tokens, attention over them, loading, partial tuning, sharding."""
