"""Figures by part of the faces: by band of true age, by gender or group.

Takes arrays with one entry per face; gives a list with one dict per part. Shape letters: N faces.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ageray.metrics.accuracy import Ages, Labels, pair
from ageray.metrics.mean import Mean, values

UNKNOWN = "unknown"
"""Name of the part whose label is None."""

Part = tuple[str, NDArray[np.bool_]]
"""A part's name, and which faces are in it (N,)."""


def decades(true: ArrayLike) -> tuple[float, ...]:
    """Edges of the decades from the youngest age to the oldest."""
    first, last = math.floor(np.min(true) / 10), math.floor(np.max(true) / 10)
    return tuple(10.0 * decade for decade in range(first, last + 2))


def bands(true_N: Ages, edges: Sequence[float]) -> Iterator[Part]:
    """Each band [edge, next edge) that has a face, youngest first; the last edge may be infinity.

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
    """Completed years if both edges are whole: 10-19 for [10, 20). 25+ for [25, infinity).

    Otherwise the edges themselves, as in 17.5-18.2.
    """
    if math.isinf(end):
        return f"{start:g}+"
    if float(start).is_integer() and float(end).is_integer():
        return f"{start:g}-{end - 1:g}"
    return f"{start:g}-{end:g}"


def labelled(labels: Labels, faces: int) -> Iterator[Part]:
    """Each label that occurs, sorted by name; the faces without a label come last.

    Raises ValueError unless there is one label entry per face.
    """
    if len(labels) != faces:
        raise ValueError(f"{len(labels)} labels for {faces} faces")
    label_N = np.array([UNKNOWN if label is None else label for label in labels])
    for label in sorted(set(label_N.tolist()), key=lambda name: (name == UNKNOWN, name)):
        yield label, label_N == label


def by_band(true: ArrayLike, predicted: ArrayLike, edges: Sequence[float]) -> list[dict[str, Any]]:
    """Images, MAE and bias of each band of true age that has a face, youngest first.

    edges: as in `bands`.
    """
    true_N, predicted_N = pair(true, predicted)
    return _rows("ages", bands(true_N, edges), predicted_N - true_N)


def by_decade(true: ArrayLike, predicted: ArrayLike) -> list[dict[str, Any]]:
    """Images, MAE and bias of each decade of true age that has a face, youngest first."""
    true_N, predicted_N = pair(true, predicted)
    return by_band(true_N, predicted_N, decades(true_N))


def by_label(true: ArrayLike, predicted: ArrayLike, labels: Labels) -> list[dict[str, Any]]:
    """Images, MAE and bias of each label that occurs; faces without a label are `unknown`."""
    true_N, predicted_N = pair(true, predicted)
    return _rows("label", labelled(labels, len(true_N)), predicted_N - true_N)


def _rows(heading: str, parts: Iterator[Part], difference_N: Ages) -> list[dict[str, Any]]:
    rows = []
    for name, part_N in parts:
        means = {"mae": Mean.over(np.abs(difference_N), part_N), "bias": Mean.over(difference_N, part_N)}
        rows.append({heading: name, "images": int(part_N.sum()), **values(means)})
    return rows
