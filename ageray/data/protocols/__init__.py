"""The protocols of the field: which faces train, validate and test."""

from ageray.data.protocols.split import COLUMNS, folds, leaks, split

__all__ = ["COLUMNS", "folds", "leaks", "split"]
