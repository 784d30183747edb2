"""Continuous ranked probability score (Gneiting and Raftery 2007, section 4.2).

Shape letters: B faces, K bins.
"""

from __future__ import annotations

from torch import Tensor

from ageray.losses.posterior import log_posterior


def crps(logits: Tensor, age: Tensor, bins: Tensor) -> Tensor:
    """Mean over the batch of sum_k (F_k - [y_k >= y])^2 in years, F the distribution function.

    F_k = sum_(j <= k) p_j. For a posterior in a single bin it is the distance to the age's bin, so
    it is the absolute error of a forecast that gives a distribution. Bins are a year apart; with a
    wider step the sum would need a factor.

    logits: (B, K). age: (B,) years, y, not rounded. bins: (K,) years, y_k, ascending.
    """
    distribution_BK = log_posterior(logits).exp().cumsum(-1)
    reached_BK = (bins >= age[:, None]).to(distribution_BK.dtype)
    return (distribution_BK - reached_BK).square().sum(-1).mean()
