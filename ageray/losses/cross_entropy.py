"""Softmax cross entropy on the age bin (DEX, Rothe et al. 2018).

Shape letters: B faces, K bins.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from ageray.losses.precision import at_least_float32


def cross_entropy(
    logits: Tensor,
    age: Tensor,
    bins: Tensor,
    *,
    label_smoothing: float = 0.0,
    reduction: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """Mean over the batch of -log p(bin of the age) (He et al., Eq. 3).

    logits: (B, K). age: (B,) years, rounded to the nearest bin (half up); ages outside the bins
    count as the outermost bin. bins: (K,) years, in steps of 1. reduction: `sum` gives the sum of
    their Eq. 4.
    """
    index_B = ((age - bins[0]) + 0.5).floor().long().clamp(0, len(bins) - 1)
    return F.cross_entropy(
        at_least_float32(logits), index_B, label_smoothing=label_smoothing, reduction=reduction
    )
