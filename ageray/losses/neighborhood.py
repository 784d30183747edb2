"""Neighborhood loss (Kwak et al.): cross entropy against Gaussian-shaped targets.

Shape letters: B faces, K bins.
"""

from __future__ import annotations

import math
from typing import Literal

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
    reduction: Literal["mean", "sum"] = "mean",
    age_std: Tensor | None = None,
) -> Tensor:
    """Mean over the batch of L_n = - sum_k exp(-(k - k_n)^2 / sigma^2) log y_k (Eq. 5).

    The paper sums over the batch (Eq. 1): `reduction: sum`. As in the paper there is no factor 2
    and no normalisation; `normalize` divides the targets by their sum, which is DLDL's cross
    entropy with standard deviation sigma / sqrt(2).

    logits: (B, K). age: (B,) years, k_n, not rounded. bins: (K,) years, k. age_std: (B,) years, the
    standard deviation of each label: sigma^2 becomes sigma^2 + 2 age_std^2. An age outside the bins
    counts as that of the outermost bin, since its targets would vanish; normalised targets
    concentrate at the nearest end by themselves.
    """
    width = widened(sigma, None if age_std is None else age_std * math.sqrt(2))
    centre_B = age if normalize else age.clamp(bins[0], bins[-1])
    exponent_BK = -((bins[None, :] - centre_B[:, None]) / width).square()
    target_BK = torch.softmax(exponent_BK, -1) if normalize else exponent_BK.exp()
    loss_B = soft_cross_entropy(log_posterior(logits), target_BK)
    return loss_B.sum() if reduction == "sum" else loss_B.mean()
