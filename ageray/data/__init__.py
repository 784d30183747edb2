"""Where faces come from: sources, splits, shards, batches, and drawn faces for tests."""
