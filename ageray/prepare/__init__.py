"""Photos of a data set to face shards: find the source's labels (`sources`, `layouts/`), look at
each photo (`inspect`), choose the rows and their order (`select`), write the shards (`write`)."""
