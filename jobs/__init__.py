"""The commands: `python -m jobs.prepare`, `train`, `evaluate`, `score`."""
