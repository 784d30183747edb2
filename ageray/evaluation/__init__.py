"""Models against labelled sets: predictions through the predictor on Ray Data, the audit of the split, figures, comparisons, pages."""

from ageray.evaluation.audited import audit_split
from ageray.evaluation.comparison import compare
from ageray.evaluation.every_fold import evaluate_folds
from ageray.evaluation.matrix import cross
from ageray.evaluation.single import PREDICTIONS, REPORT, SPLIT, evaluate

__all__ = ["PREDICTIONS", "REPORT", "SPLIT", "audit_split", "compare", "cross", "evaluate", "evaluate_folds"]
