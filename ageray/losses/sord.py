"""SORD, soft labels for ordinal regression (Diaz and Marathe, CVPR 2019).

Shape letters: B faces, K bins.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ageray.losses.posterior import log_posterior, soft_cross_entropy


def sord(
    logits: Tensor, age: Tensor, bins: Tensor, *, metric: Literal["l1", "l2"] = "l2", alpha: float = 1.0
) -> Tensor:
    """Mean over the batch of - sum_k t_k log p_k, t = softmax_k(-alpha phi(y, y_k)).

    metric: `l1` sets phi = |y - y_k|, `l2` its square. `l2` is `neighborhood` with normalised
    targets and sigma = 1 / sqrt(alpha).

    logits: (B, K). age: (B,) years, y, not rounded. bins: (K,) years, y_k. If an age lies outside
    the bins, most of its target falls on the nearest bins.
    """
    difference_BK = bins[None, :] - age[:, None]
    phi_BK = difference_BK.abs() if metric == "l1" else difference_BK.square()
    return soft_cross_entropy(log_posterior(logits), torch.softmax(-alpha * phi_BK, -1)).mean()
