"""Search over the settings of an experiment on Ray Tune: a checked space, proposals, trials, finalists with several seeds, the winner's bundle."""

from ageray.tune.run import Plan, make, search

__all__ = ["Plan", "make", "search"]
