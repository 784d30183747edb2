"""Risk-coverage: the error of the faces that are answered if the least certain are not.

The certainty of a face is the width of its interval: the narrowest are answered first (Geifman and
El-Yaniv, NeurIPS 2017). Takes errors and widths in years, gives the curve and the area under it.
Shape letters: N faces, G groups of faces with equally wide intervals, R resamples, A shares that
are answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ageray.metrics.accuracy import Ages, pair

ANSWERED = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Shares of the faces that are answered, at which a curve is read."""


class RiskCoverage:
    """Faces in the order in which they are answered, narrowest interval first.

    Faces with equally wide intervals may come in any order. Each of them counts the mean error of
    its group, which gives the exact expectation over these orders.
    errors: (N,) years; widths: (N,) years.
    """

    def __init__(self, errors: ArrayLike, widths: ArrayLike) -> None:
        errors_N, widths_N = pair(errors, widths)
        self._order_N = np.argsort(widths_N, kind="stable")
        self._errors_N = errors_N[self._order_N]
        self._starts_G = np.flatnonzero(np.diff(widths_N[self._order_N], prepend=-np.inf) > 0)

    def figures(
        self, counts_RN: NDArray[np.float64], answered: Sequence[float] = ANSWERED
    ) -> NDArray[np.float64]:
        """AURC, then the mean error at each share of `answered`: (R, 1 + A).

        Face i is there counts[:, i] times; n is the sum of the counts. At a share a, the narrowest
        ceil(a n) faces are answered. AURC = 1/n sum_k (mean error of the k narrowest). A group of m
        faces with mean g, after K faces with sum S, adds sum_(j=1..m) (S + j g) / (K + j)
        = m g + (S - K g) (H(K+m) - H(K)), where H are the harmonic numbers.
        """
        counts_RN = counts_RN[:, self._order_N]
        size_RG, sum_RG = self._grouped(counts_RN), self._grouped(counts_RN * self._errors_N)
        end_RG, total_RG = np.cumsum(size_RG, 1), np.cumsum(sum_RG, 1)
        area_R = self._area(size_RG, sum_RG, end_RG, total_RG)
        faces_R = end_RG[:, -1]
        answered_RA = np.maximum(np.ceil(np.multiply.outer(faces_R, answered) - 1e-9), 1)
        last_RA = np.empty(answered_RA.shape, np.int64)
        for row, ends_G in enumerate(end_RG):
            last_RA[row] = np.searchsorted(ends_G, answered_RA[row])
        end_RA, total_RA = np.take_along_axis(end_RG, last_RA, 1), np.take_along_axis(total_RG, last_RA, 1)
        size_RA, sum_RA = np.take_along_axis(size_RG, last_RA, 1), np.take_along_axis(sum_RG, last_RA, 1)
        risk_RA = (total_RA - (end_RA - answered_RA) * sum_RA / size_RA) / answered_RA
        return np.concatenate([area_R[:, None], risk_RA], 1)

    def _grouped(self, values_RN: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sums over the groups (R, G)."""
        if len(self._starts_G) == values_RN.shape[1]:
            return values_RN
        return np.add.reduceat(values_RN, self._starts_G, axis=1)

    @staticmethod
    def _area(
        size_RG: NDArray[np.float64],
        sum_RG: NDArray[np.float64],
        end_RG: NDArray[np.float64],
        total_RG: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, end_RG.max() + 1))])
        rise_RG = harmonic[end_RG.astype(np.int64)]
        rise_RG[:, 1:] -= rise_RG[:, :-1].copy()
        mean_RG = sum_RG / np.maximum(size_RG, 1)
        offset_RG = total_RG - end_RG * mean_RG  # S - K g: the group's own share cancels out
        area_R: NDArray[np.float64] = total_RG[:, -1] + np.einsum("rg,rg->r", offset_RG, rise_RG)
        return area_R / end_RG[:, -1]


def area_under_risk(errors: ArrayLike, widths: ArrayLike) -> float:
    """AURC in years: the mean error of the answered faces, averaged over all shares answered.

    Without any order it equals the mean error. The best order is that of the errors themselves;
    `risk_coverage` gives both.
    """
    errors_N, widths_N = pair(errors, widths)
    return float(RiskCoverage(errors_N, widths_N).figures(np.ones((1, len(errors_N))), ())[0, 0])


def risk_coverage(true: ArrayLike, predicted: ArrayLike, low: ArrayLike, high: ArrayLike) -> dict[str, Any]:
    """The curve of the answered faces' MAE, its AURC, and the AURC of the best and of no order."""
    true_N, predicted_N = pair(true, predicted)
    low_N, high_N = pair(low, high)
    return risk_coverage_of(np.abs(predicted_N - true_N), high_N - low_N)


def risk_coverage_of(errors_N: Ages, widths_N: Ages) -> dict[str, Any]:
    """`risk_coverage` of errors and widths."""
    aurc, *risks = RiskCoverage(errors_N, widths_N).figures(np.ones((1, len(errors_N))))[0].tolist()
    return {
        "curve": [{"answered": share, "mae": risk} for share, risk in zip(ANSWERED, risks, strict=True)],
        "aurc": aurc,
        "aurc_best": area_under_risk(errors_N, errors_N),
        "aurc_without_order": float(errors_N.mean()),
    }
