"""Models against labelled sets: predictions through the predictor on Ray Data, the audit of the split, figures, comparisons, pages."""

from ageray.evaluate.compare import compare
from ageray.evaluate.cross import cross
from ageray.evaluate.folds import evaluate_folds
from ageray.evaluate.one_model import PREDICTIONS, REPORT, SPLIT, evaluate
from ageray.evaluate.split_audit import audit_split

__all__ = ["PREDICTIONS", "REPORT", "SPLIT", "audit_split", "compare", "cross", "evaluate", "evaluate_folds"]
