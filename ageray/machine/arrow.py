"""Arrow without pandas, which takes 0.2 s to import.

Arrow imports pandas when it makes its first array of Python values, to find out whether they are a
series of pandas. A process that has no such series can do without.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from typing import Any

import pyarrow as pa

_PANDAS = "pandas"


class _Finder(MetaPathFinder):
    """Says that pandas is not installed."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        """Raises ImportError for pandas, and leaves others to the next finder."""
        if name == _PANDAS:
            raise ImportError(f"{_PANDAS} is left out")


def leave_out_pandas() -> None:
    """Keeps Arrow from importing pandas until this process ends, unless it has done so.

    Arrow will then take series of pandas for sequences like others: not for a process of the user's
    or of Ray's.
    """
    if _PANDAS in sys.modules:
        return
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        pa.array([0])  # both of Arrow's languages, Cython and C++, try it once
    finally:
        sys.meta_path.remove(finder)
