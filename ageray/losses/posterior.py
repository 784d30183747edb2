"""The posterior over age bins, as the losses on `logits` use it.

Shape letters: B faces, K bins.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ageray.losses.precision import at_least_float32


def log_posterior(logits_BK: Tensor) -> Tensor:
    """log p_k: (B, K), float32 or better; finite for any finite logits."""
    return torch.log_softmax(at_least_float32(logits_BK), -1)


def expectation(log_posterior_BK: Tensor, bins_K: Tensor) -> Tensor:
    """sum_k p_k y_k in years: (B,).

    It is a product and a sum, because autocast would compute a matrix product in half precision.
    """
    return (log_posterior_BK.exp() * bins_K).sum(-1)


def divergence(log_posterior_BK: Tensor, log_target_BK: Tensor) -> Tensor:
    """Kullback-Leibler divergence of each face's target t from its posterior: (B,).

    It is sum_k t_k (log t_k - log p_k).
    """
    return (log_target_BK.exp() * (log_target_BK - log_posterior_BK)).sum(-1)


def widened(sigma: float, age_std_B: Tensor | None) -> float | Tensor:
    """The width of each face's target in years, sqrt(sigma^2 + age_std^2): (B, 1), or `sigma` where no label has a deviation."""
    return sigma if age_std_B is None else (age_std_B.square() + sigma**2).sqrt()[:, None]


def soft_cross_entropy(log_posterior_BK: Tensor, target_BK: Tensor) -> Tensor:
    """- sum_k t_k log p_k of each face: (B,). The targets need not sum to 1."""
    return -(target_BK * log_posterior_BK).sum(-1)
