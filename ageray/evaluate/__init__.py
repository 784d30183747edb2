"""Models on labelled sets: one model, several compared, models against sets, folds of a protocol.

Takes models or recipes and face shards; writes predictions, figures with intervals, the audit of
the split, and a page. The package can be called: `ageray.evaluate("zoo:default", "results")` does
what the command does (`ageray.api.calls`).
"""

from ageray.callable_package import make_callable
from ageray.evaluate.compare import compare
from ageray.evaluate.cross import cross
from ageray.evaluate.files import REPORT, EvaluationFiles
from ageray.evaluate.folds import evaluate_folds
from ageray.evaluate.one_model import evaluate
from ageray.evaluate.split_audit import audit_split

__all__ = ["REPORT", "EvaluationFiles", "audit_split", "compare", "cross", "evaluate", "evaluate_folds"]

make_callable(__name__)
