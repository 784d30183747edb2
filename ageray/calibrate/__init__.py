"""A bundle's line and interval, fitted to labelled faces of one's own camera and people."""

from ageray.calibrate.run import calibrate

__all__ = ["calibrate"]
