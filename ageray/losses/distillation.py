"""Distillation: the cross entropy to a teacher's posterior (Hinton et al. 2015, at temperature
1), for the young alone where asked for.

Shape letters: B faces, K bins.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ageray.losses.posterior import log_posterior, soft_cross_entropy


def distillation(
    logits: Tensor, teacher: Tensor, age: Tensor, *, below: float | None = None, width: float = 2.0
) -> Tensor:
    """Mean over the batch of - g sum_k q_k log p_k, with q the teacher's posterior and p the
    network's.

    g = 1 for every face, or with `below` (years) g = 1 / (1 + exp((y - below) / width)) of the
    true age y: the teacher is listened to on faces that are known to be young. logits: (B, K).
    teacher: (B, K), of sum 1. age: (B,) years. width: years.
    """
    each_B = soft_cross_entropy(log_posterior(logits), teacher.float())
    if below is not None:
        each_B = each_B * torch.sigmoid((below - age) / width)
    return each_B.mean()
