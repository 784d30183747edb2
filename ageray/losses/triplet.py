"""Triplet loss on the hardest triplets of the batch (He et al.). Shape letters: B faces, D features, K triplets."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ageray.losses.mining import hardest_triplets
from ageray.losses.precision import at_least_float32

_LEAST_NORM = 1e-6


def triplet(
    embedding: Tensor,
    age: Tensor,
    *,
    margin: float = 0.5,
    top_k: int = 64,
    normalize: bool = True,
    reduction: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """Mean over the mined triplets of max(0, m + D(a, p) - D(a, n)) (Eq. 2), D(x, y) = ||f(x) - f(y)||^2 (Eq. 1).

    Of all triplets of the batch whose positive is as old as the anchor and whose negative is not, the `top_k` of highest loss (section 2);
    `reduction="sum"` is the sum of Eq. 4. Triplets of no loss count in the mean where there are not `top_k` with one. No triplet at all
    gives 0, with a gradient of zeros.

    embedding: (B, D). age: (B,) years; equal age means the same year after rounding (half up). margin: in squared distance. normalize: to
    unit length first, so that 0 <= D <= 4; the paper does not say, but a margin of 0.5 has no scale otherwise. Holds B^2 distances and
    3 K rows of D features. In data-parallel training these are the triplets of each worker's own part of the batch.
    """
    embedding_BD = at_least_float32(embedding)
    if normalize:
        embedding_BD = embedding_BD / torch.linalg.vector_norm(embedding_BD, dim=-1, keepdim=True).clamp_min(
            _LEAST_NORM
        )
    year_B = (age + 0.5).floor()
    anchor_K, positive_K, negative_K, real_K = hardest_triplets(
        _squared_distances(embedding_BD.detach()), year_B, top_k
    )
    # again for the chosen ones alone: the gradient then needs K rows, and no difference of large numbers comes in
    positive_distance_K = (embedding_BD[anchor_K] - embedding_BD[positive_K]).square().sum(-1)
    negative_distance_K = (embedding_BD[anchor_K] - embedding_BD[negative_K]).square().sum(-1)
    loss_K = (margin + positive_distance_K - negative_distance_K).relu() * real_K
    return loss_K.sum() if reduction == "sum" else loss_K.sum() / real_K.sum().clamp_min(1)


def _squared_distances(embedding_BD: Tensor) -> Tensor:
    # not by way of a matrix product, which TF32 and cancellation spoil
    return torch.cdist(embedding_BD, embedding_BD, compute_mode="donot_use_mm_for_euclid_dist").square()
