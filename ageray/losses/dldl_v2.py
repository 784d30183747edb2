"""DLDL-v2 (Gao et al., IJCAI 2018): label distribution and expectation learned together.

Shape letters: B faces, K bins.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ageray.losses import posterior


def dldl_v2(
    logits: Tensor,
    age: Tensor,
    bins: Tensor,
    *,
    sigma: float = 2.0,
    expectation: float = 1.0,
    age_std: Tensor | None = None,
) -> Tensor:
    """Mean over the batch of L_ld + lambda L_er.

    L_ld = sum_k t_k log(t_k / p_k), t_k proportional to exp(-(y_k - y)^2 / (2 sigma^2)) and of sum 1: unlike a cross entropy it is zero
    where the posterior is the target. L_er = |y - sum_k p_k y_k|; lambda is `expectation`. logits: (B, K). age: (B,) years, y, not rounded.
    bins: (K,) years, y_k. sigma: years. age_std: (B,) years, the deviation of each label, which widens its target to
    sqrt(sigma^2 + age_std^2). For an age outside the bins the targets crowd at the nearest end.
    """
    log_posterior_BK = posterior.log_posterior(logits)
    width = posterior.widened(sigma, age_std)
    log_target_BK = torch.log_softmax(-((bins[None, :] - age[:, None]) / width).square() / 2, -1)
    error_B = posterior.expectation(log_posterior_BK, bins) - age
    return (posterior.divergence(log_posterior_BK, log_target_BK) + expectation * error_B.abs()).mean()
