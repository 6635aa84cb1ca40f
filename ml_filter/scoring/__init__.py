"""Score a corpus shard by shard."""
