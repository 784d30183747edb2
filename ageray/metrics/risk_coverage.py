"""What is gained by not answering where the interval is wide: risk against coverage (Geifman and El-Yaniv, NeurIPS 2017).

Shape letters: N faces, G groups of faces with equally wide intervals, R resamples, A shares that are answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ageray.metrics.accuracy import Ages, pair

ANSWERED = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Shares of the faces that are answered, at which a curve is read."""


class ApiError:
    """Faces in the order in which they are answered, narrowest interval first.

    Faces with equally wide intervals come in any order: each counts the mean error of its group, which gives the expectation over these
    orders exactly. `errors` (N,) years, `widths` (N,).
    """

    def __init__(self, errors: ArrayLike, widths: ArrayLike) -> None:
        errors_N, widths_N = pair(errors, widths)
        self._order_N = np.argsort(widths_N, kind="stable")
        self._errors_N = errors_N[self._order_N]
        self._starts_G = np.flatnonzero(np.diff(widths_N[self._order_N], prepend=-np.inf) > 0)

    def figures(
        self, counts_RN: NDArray[np.float64], answered: Sequence[float] = ANSWERED
    ) -> NDArray[np.float64]:
        """AURC and then, for each share a answered, the mean error of the narrowest ceil(a n) faces, where face i is there counts[:, i] times
        and n is the sum of the counts: (R, 1 + A).

        AURC = 1/n sum_k (mean error of the k narrowest). A group of m faces with mean g after K faces with sum S gives
        sum_(j=1..m) (S + j g) / (K + j) = m g + (S - K g) (H(K+m) - H(K)), H being the harmonic numbers.
        """
        counts_RN = counts_RN[:, self._order_N]
        size_RG, sum_RG = self._grouped(counts_RN), self._grouped(counts_RN * self._errors_N)
        end_RG, total_RG = np.cumsum(size_RG, 1), np.cumsum(sum_RG, 1)
        area_R = self._area(size_RG, sum_RG, end_RG, total_RG)
        faces = end_RG[:, -1]
        wanted_RA = np.maximum(np.ceil(np.multiply.outer(faces, answered) - 1e-9), 1)
        last_RA = np.stack(
            [np.searchsorted(ends, wanted) for ends, wanted in zip(end_RG, wanted_RA, strict=True)]
        )
        end_RA, total_RA, size_RA, sum_RA = (
            np.take_along_axis(of, last_RA, 1) for of in (end_RG, total_RG, size_RG, sum_RG)
        )
        risk_RA = (total_RA - (end_RA - wanted_RA) * sum_RA / size_RA) / wanted_RA
        return np.concatenate([area_R[:, None], risk_RA], 1)

    def _grouped(self, values_RN: NDArray[np.float64]) -> NDArray[np.float64]:
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
        offset_RG = total_RG - end_RG * mean_RG  # S - K g: what the group adds to both cancels
        area_R: NDArray[np.float64] = total_RG[:, -1] + np.einsum("rg,rg->r", offset_RG, rise_RG)
        return area_R / end_RG[:, -1]


def area_under_risk(errors: ArrayLike, widths: ArrayLike) -> float:
    """AURC in years: the mean error that is kept, averaged over all shares of answered faces, the widest intervals refused first.

    Without any order it would be the mean error; the best order is that of the errors themselves (`risk_coverage` gives both).
    """
    errors_N, widths_N = pair(errors, widths)
    return float(ApiError(errors_N, widths_N).figures(np.ones((1, len(errors_N))), ())[0, 0])


def risk_coverage(true: ArrayLike, predicted: ArrayLike, low: ArrayLike, high: ArrayLike) -> dict[str, Any]:
    """MAE of the faces answered when those with the widest intervals are refused: the curve, AURC, and AURC of the best order and of none."""
    true_N, predicted_N = pair(true, predicted)
    low_N, high_N = pair(low, high)
    errors_N = np.abs(predicted_N - true_N)
    return refusal_figures(errors_N, high_N - low_N)


def refusal_figures(errors_N: Ages, widths_N: Ages) -> dict[str, Any]:
    """`risk_coverage` of errors and widths."""
    aurc, *risks = ApiError(errors_N, widths_N).figures(np.ones((1, len(errors_N))))[0].tolist()
    return {
        "curve": [{"answered": share, "mae": risk} for share, risk in zip(ANSWERED, risks, strict=True)],
        "aurc": aurc,
        "aurc_best": area_under_risk(errors_N, errors_N),
        "aurc_without_order": float(errors_N.mean()),
    }
