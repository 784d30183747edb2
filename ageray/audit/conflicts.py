"""Labels that contradict each other: one picture, two ages. Shape letters: N faces, P pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

EXAMPLES = 20
"""At most so many pairs of keys are listed for each finding."""

Ages = NDArray[np.float64]
Rows = NDArray[np.int64]


def identical_conflicts(digest_N: Rows, age_N: Ages, keys: list[str]) -> dict[str, Any]:
    """`groups` of images with equal digests (numbers, -1: unknown) and different ages, their `images`, `examples` (key, age, key, age)."""
    known = np.flatnonzero((digest_N >= 0) & np.isfinite(age_N))
    order = known[np.lexsort((age_N[known], digest_N[known]))]
    starts = np.flatnonzero(np.diff(digest_N[order], prepend=-1))
    ends = np.append(starts[1:], len(order))
    differ = (
        np.flatnonzero(age_N[order[starts]] != age_N[order[ends - 1]])
        if len(order)
        else np.empty(0, np.int64)
    )
    examples = [
        _example(int(order[starts[at]]), int(order[ends[at] - 1]), age_N, keys) for at in differ[:EXAMPLES]
    ]
    return {"groups": len(differ), "images": int((ends - starts)[differ].sum()), "examples": examples}


def near_conflicts(pairs: Rows, age_N: Ages, keys: list[str]) -> dict[str, Any]:
    """Of near-identical `pairs` (rows, (P, 2)) those whose ages are known, how many `differ` and their `mean_difference` in years."""
    gaps = np.abs(age_N[pairs[:, 0]] - age_N[pairs[:, 1]])
    known = np.isfinite(gaps)
    differ = pairs[known & (gaps > 0)]
    mean = float(gaps[known & (gaps > 0)].mean()) if len(differ) else None
    examples = [_example(int(one), int(other), age_N, keys) for one, other in differ[:EXAMPLES]]
    return {"pairs": int(known.sum()), "differ": len(differ), "mean_difference": mean, "examples": examples}


def _example(one: int, other: int, age_N: Ages, keys: list[str]) -> tuple[str, float, str, float]:
    return keys[one], float(age_N[one]), keys[other], float(age_N[other])
