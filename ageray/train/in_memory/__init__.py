"""Training on faces in memory: what the folds of an evaluation and the trials of a search run."""
