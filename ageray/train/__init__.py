"""Training: the plain loop (no Ray), optimisers and schedules, and the Ray Train worker around them."""
