"""Training: the loop in plain torch, and the Ray Train workers that run it."""
