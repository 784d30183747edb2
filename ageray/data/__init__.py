"""Face shards read back: rows, splits, protocols, and the stream that decodes faces."""
