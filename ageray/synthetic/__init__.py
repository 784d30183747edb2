"""Drawn faces and photos, for tests and demonstrations without a download."""
