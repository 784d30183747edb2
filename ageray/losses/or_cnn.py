"""OR-CNN: ordinal regression by binary questions (Niu et al., CVPR 2016).

Shape letters: B faces, K bins, Q = K - 1 questions.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ageray.losses.precision import at_least_float32


def or_cnn(
    ordinal_logits: Tensor,
    age: Tensor,
    bins: Tensor,
    *,
    importance: Literal["uniform", "sqrt_count"] = "uniform",
) -> Tensor:
    """Mean over the batch of sum_k lambda_k BCE(question k). Question k is 'older than bin k?'.

    Niu et al. have a weight vector for each question (`classifier: or_cnn`). Cao et al. 2020 have
    one for all questions (`coral`). The loss is the same.

    importance: `uniform` sets lambda_k = 1. `sqrt_count` sets sqrt(M_k) / max_j sqrt(M_j), where
    question k divides the faces into two groups and M_k is the size of the larger (Cao et al.).
    Departure: they count in the training set, we count in the batch.

    ordinal_logits: (B, K - 1). age: (B,) years, rounded to the nearest bin (half up); ages outside
    the bins count as the outermost bin. bins: (K,) years, in steps of 1.
    """
    logits_BQ = at_least_float32(ordinal_logits)
    older_BQ = (age[:, None] >= bins[:-1] + 0.5).to(logits_BQ.dtype)
    loss_BQ = F.binary_cross_entropy_with_logits(logits_BQ, older_BQ, reduction="none")
    if importance == "sqrt_count":
        loss_BQ = loss_BQ * _sqrt_count(older_BQ)
    return loss_BQ.sum(-1).mean()


def _sqrt_count(older_BQ: Tensor) -> Tensor:
    """lambda_k of `sqrt_count`: (Q,)."""
    share_Q = older_BQ.mean(0)
    root_Q = torch.maximum(share_Q, 1 - share_Q).sqrt()
    return root_Q / root_Q.max()
