"""`Mean`: a figure as a mean over some of the faces; and trees of means.

One definition serves both the figure and its bootstrap resamples. A tree is what a report holds:
dicts, lists and plain values with `Mean`s as leaves. Shape letters: N faces, M faces of one mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tree = Any
"""Dicts, lists and plain values with `Mean`s among them."""


@dataclass(frozen=True, eq=False)
class Mean:
    """sum_i w_i x_i / sum_i w_i over the faces `rows_M`, with x `values_M` and w `weights_M`.

    A mean of booleans is a share. Over no face it has no value.
    """

    values_M: NDArray[Any]
    rows_M: NDArray[np.int64]
    weights_M: NDArray[np.float64] | None = None

    @classmethod
    def over(
        cls,
        values_N: NDArray[Any],
        chosen_N: NDArray[np.bool_] | None = None,
        weights_N: NDArray[np.float64] | None = None,
    ) -> Mean:
        """The mean over the faces of `chosen_N`; over all faces if that is None."""
        if chosen_N is None:
            return cls(values_N, np.arange(len(values_N)), weights_N)
        rows_M = np.flatnonzero(chosen_N)
        return cls(values_N[rows_M], rows_M, None if weights_N is None else weights_N[rows_M])

    @property
    def share(self) -> bool:
        """Whether the values are booleans."""
        return self.values_M.dtype == np.bool_

    @property
    def value(self) -> float | None:
        """The figure; None over no face."""
        if len(self.rows_M) == 0:
            return None
        return float(np.average(self.values_M, weights=self.weights_M))


def leaves(tree: Tree) -> Iterator[Mean]:
    """The means of a tree, in a fixed order."""
    if isinstance(tree, Mean):
        yield tree
    elif isinstance(tree, dict):
        yield from leaves(list(tree.values()))
    elif isinstance(tree, list):
        for branch in tree:
            yield from leaves(branch)


def mapped(tree: Tree, change: Callable[[Mean], Any]) -> Tree:
    """The same tree with `change(mean)` in place of each mean, in the order of `leaves`."""
    if isinstance(tree, Mean):
        return change(tree)
    if isinstance(tree, dict):
        return {name: mapped(branch, change) for name, branch in tree.items()}
    if isinstance(tree, list):
        return [mapped(branch, change) for branch in tree]
    return tree


def values(tree: Tree) -> Tree:
    """The same tree with each mean's value in its place."""
    return mapped(tree, lambda mean: mean.value)
