"""Models on labelled sets: one model, several compared, models against sets, folds of a protocol.

Takes models or recipes and face shards; writes predictions, figures with intervals, the audit of
the split, and a page. Start at `ageray.evaluate.run`. The package can be called:
`ageray.evaluate("zoo:default", "results")` does what the command does (`ageray.api.calls`).
"""

from ageray.callable_package import make_callable

make_callable(__name__)
