"""The faces in parts: by age band, by gender or group. Shape letters: N faces."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ageray.metrics.accuracy import Ages, Labels, pair
from ageray.metrics.mean import Mean, values

UNKNOWN = "unknown"
"""The part of the faces whose label is None."""

Part = tuple[str, NDArray[np.bool_]]


def decades(true: ArrayLike) -> tuple[float, ...]:
    """Edges of the decades from the youngest age to the oldest."""
    lowest, highest = (math.floor(edge / 10) for edge in (np.min(true), np.max(true)))
    return tuple(10.0 * decade for decade in range(lowest, highest + 2))


def bands(true_N: Ages, edges: Sequence[float]) -> Iterator[Part]:
    """Name and faces (N,) of each band [edge, next edge) that occurs, youngest first; the last edge may be infinity.

    Raises ValueError unless the edges ascend and every age lies between the first and the last.
    """
    limits = np.asarray(edges, np.float64)
    if len(limits) < 2 or not (np.diff(limits) > 0).all():
        raise ValueError(f"bands need two or more edges that ascend; got {list(edges)}")
    if not ((true_N >= limits[0]) & (true_N < limits[-1])).all():
        raise ValueError(
            f"ages from {true_N.min():g} to {true_N.max():g} do not fit into the bands {list(edges)}"
        )
    band_N = np.searchsorted(limits, true_N, side="right") - 1
    for band in np.unique(band_N):
        yield band_name(limits[band], limits[band + 1]), band_N == band


def band_name(start: float, end: float) -> str:
    """As completed years where both are whole: 10-19 for [10, 20), 25+ for [25, infinity); else 17.5-18.2."""
    if math.isinf(end):
        return f"{start:g}+"
    return (
        f"{start:g}-{end - 1:g}"
        if float(start).is_integer() and float(end).is_integer()
        else f"{start:g}-{end:g}"
    )


def labelled(labels: Labels, faces: int) -> Iterator[Part]:
    """Name and faces (N,) of each label that occurs, in order of their names, last those without one.

    Raises ValueError unless there is one label a face."""
    if len(labels) != faces:
        raise ValueError(f"{len(labels)} labels for {faces} faces")
    label_N = np.array([UNKNOWN if label is None else label for label in labels])
    for label in sorted(set(label_N.tolist()), key=lambda name: (name == UNKNOWN, name)):
        yield label, label_N == label


def by_band(true: ArrayLike, predicted: ArrayLike, edges: Sequence[float]) -> list[dict[str, Any]]:
    """Images, MAE and bias of each band of true age that occurs, youngest first; `edges` as in `bands`."""
    true_N, predicted_N = pair(true, predicted)
    return [{"ages": name, **_errors(true_N, predicted_N, here_N)} for name, here_N in bands(true_N, edges)]


def by_decade(true: ArrayLike, predicted: ArrayLike) -> list[dict[str, Any]]:
    """Images, MAE and bias of each decade of true age that occurs, youngest first."""
    true_N, predicted_N = pair(true, predicted)
    return by_band(true_N, predicted_N, decades(true_N))


def by_label(true: ArrayLike, predicted: ArrayLike, labels: Labels) -> list[dict[str, Any]]:
    """Images, MAE and bias of each label (a gender, a group) that occurs; faces without one are `unknown`."""
    true_N, predicted_N = pair(true, predicted)
    return [
        {"label": name, **_errors(true_N, predicted_N, here_N)}
        for name, here_N in labelled(labels, len(true_N))
    ]


def _errors(true_N: Ages, predicted_N: Ages, here_N: NDArray[np.bool_]) -> dict[str, Any]:
    difference_N = predicted_N - true_N
    means = {"mae": Mean.over(np.abs(difference_N), here_N), "bias": Mean.over(difference_N, here_N)}
    return {"images": int(here_N.sum()), **values(means)}
