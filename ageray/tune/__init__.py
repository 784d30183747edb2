"""Search over the settings of an experiment: a checked space in, compared finalists and a bundle
out.
"""

from ageray.tune.run import Plan, make, search

__all__ = ["Plan", "make", "search"]
