"""Labels that contradict each other: one picture, two ages.

Takes digests or pairs of near-identical images with their ages; gives counts and examples.
Shape letters: N faces, P pairs, G groups of equal digests.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

EXAMPLES = 20
"""Upper bound on the pairs of keys that are listed for each finding."""

Ages = NDArray[np.float64]
Rows = NDArray[np.int64]


def identical_conflicts(digest_N: Rows, age_N: Ages, keys: list[str]) -> dict[str, Any]:
    """Byte-identical images with different ages.

    digest_N: equal numbers for equal digests, -1 for unknown. Gives `groups` of such images, the
    number of their `images`, and `examples` (key, age, key, age).
    """
    labelled = np.flatnonzero((digest_N >= 0) & np.isfinite(age_N))
    if len(labelled) == 0:
        return {"groups": 0, "images": 0, "examples": []}
    order = labelled[np.lexsort((age_N[labelled], digest_N[labelled]))]
    start_G = np.flatnonzero(np.diff(digest_N[order], prepend=-1))
    end_G = np.append(start_G[1:], len(order))
    youngest_G, oldest_G = order[start_G], order[end_G - 1]
    differ_G = age_N[youngest_G] != age_N[oldest_G]
    return {
        "groups": int(differ_G.sum()),
        "images": int((end_G - start_G)[differ_G].sum()),
        "examples": _examples(np.stack([youngest_G, oldest_G], 1)[differ_G], age_N, keys),
    }


def near_conflicts(pairs: Rows, age_N: Ages, keys: list[str]) -> dict[str, Any]:
    """Near-identical images with different ages, among `pairs` of rows (P, 2).

    Gives the number of `pairs` whose ages are known, how many of them `differ`, their
    `mean_difference` in years (null if none differs), and `examples` (key, age, key, age).
    """
    gap_P = np.abs(age_N[pairs[:, 0]] - age_N[pairs[:, 1]])
    differ_P = np.isfinite(gap_P) & (gap_P > 0)
    return {
        "pairs": int(np.isfinite(gap_P).sum()),
        "differ": int(differ_P.sum()),
        "mean_difference": float(gap_P[differ_P].mean()) if differ_P.any() else None,
        "examples": _examples(pairs[differ_P], age_N, keys),
    }


def _examples(pairs: Rows, age_N: Ages, keys: list[str]) -> list[tuple[str, float, str, float]]:
    return [
        (keys[first], float(age_N[first]), keys[second], float(age_N[second]))
        for first, second in pairs[:EXAMPLES].tolist()
    ]
