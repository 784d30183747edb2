"""A figure as a mean over some of the faces, and trees of them: what is measured and what is resampled is one definition.

Shape letters: N faces, M faces that the mean is over.
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
        """Of the faces that are chosen (all of them where that is None)."""
        rows = np.arange(len(values_N)) if chosen_N is None else np.flatnonzero(chosen_N)
        return cls(values_N[rows], rows, None if weights_N is None else weights_N[rows])

    @property
    def share(self) -> bool:
        """Whether it is the share of faces of which something is true."""
        return self.values_M.dtype == np.bool_

    @property
    def value(self) -> float | None:
        """The figure; None over no face."""
        return float(np.average(self.values_M, weights=self.weights_M)) if len(self.rows_M) else None


def leaves(tree: Tree) -> Iterator[Mean]:
    """The means of a tree, in a fixed order."""
    if isinstance(tree, Mean):
        yield tree
    elif isinstance(tree, dict | list):
        for branch in tree.values() if isinstance(tree, dict) else tree:
            yield from leaves(branch)


def mapped(tree: Tree, change: Callable[[Mean], Any]) -> Tree:
    """The same tree with every mean changed, in the order of `leaves`."""
    if isinstance(tree, Mean):
        return change(tree)
    if isinstance(tree, dict):
        return {name: mapped(branch, change) for name, branch in tree.items()}
    return [mapped(branch, change) for branch in tree] if isinstance(tree, list) else tree


def values(tree: Tree) -> Tree:
    """The same tree with every mean's value in its place."""
    return mapped(tree, lambda mean: mean.value)
