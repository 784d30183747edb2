"""Neighborhood loss (Kwak et al.): cross entropy against Gaussian-shaped targets.

Shape letters: B faces, K bins.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ageray.losses.posterior import log_posterior, soft_cross_entropy, widened


def neighborhood(
    logits: Tensor,
    age: Tensor,
    bins: Tensor,
    *,
    sigma: float = 5.0,
    normalize: bool = False,
    age_std: Tensor | None = None,
) -> Tensor:
    """Mean over the batch of L_n = - sum_k exp(-(k - k_n)^2 / sigma^2) log y_k (Eq. 5; the paper sums over the batch).

    No factor 2 and no normalisation, as written; `normalize` divides the targets by their sum (DLDL's cross entropy with standard deviation
    sigma / sqrt(2)). age_std: (B,) years, the standard deviation of each label: sigma^2 becomes sigma^2 + 2 age_std^2. logits: (B, K). age: (B,) years, k_n, not rounded. bins: (K,) years, k. An age far outside the bins has targets of
    zero and no gradient as written; normalised, they crowd at the nearest end.
    """
    width = widened(sigma, None if age_std is None else age_std * math.sqrt(2))
    exponent_BK = -((bins[None, :] - age[:, None]) / width).square()
    target_BK = torch.softmax(exponent_BK, -1) if normalize else exponent_BK.exp()
    return soft_cross_entropy(log_posterior(logits), target_BK).mean()
