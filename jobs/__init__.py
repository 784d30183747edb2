"""The commands: `python -m jobs.prepare`, `train`, `tune`, `evaluate`, `score`, `serve`.

Each module reads the command line and the settings, and only then imports the package of its name.
So `--help` and a user's mistake are answered without importing Ray and torch, which takes seconds.
"""
