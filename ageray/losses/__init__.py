"""Loss terms, one file each, and their weighted sum. Models are unknown here: a term names the tensors that it needs."""
