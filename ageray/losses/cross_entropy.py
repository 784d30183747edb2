"""Softmax cross entropy on the age bin (DEX, Rothe et al. 2018). Shape letters: B faces, K bins."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def cross_entropy(logits: Tensor, age: Tensor, bins: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Mean over the batch of -log p(bin of the age).

    logits: (B, K). age: (B,) years; rounded to the nearest bin (half up), ages outside the bins count as the outermost. bins: (K,) years,
    ascending by one.
    """
    index_B = ((age - bins[0]) + 0.5).floor().long().clamp(0, len(bins) - 1)
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), index_B, label_smoothing=label_smoothing)
