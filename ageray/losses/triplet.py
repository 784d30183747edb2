"""Triplet loss on the hardest triplets of the batch (He et al.).

Shape letters: B faces, D features, K triplets.
"""

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
    """Mean over the mined triplets of max(0, m + D(a, p) - D(a, n)) (Eq. 2).

    D(x, y) = ||f(x) - f(y)||^2 (Eq. 1). The positive has the anchor's age, the negative has
    another age. Of all such triplets in the batch the `top_k` of highest loss are taken
    (section 2). If fewer than `top_k` have a loss, triplets of loss 0 count in the mean. A batch
    without a triplet gives 0, with a gradient of zeros.

    embedding: (B, D). age: (B,) years; ages are equal if they round to the same year (half up).
    margin: m, in squared distance. normalize: scale embeddings to unit length first, so that
    0 <= D <= 4. The paper does not say whether it does, but a margin of 0.5 has no scale
    otherwise. reduction: `sum` gives the sum of Eq. 4.

    Memory: B^2 distances and 3 K rows of D features. In data-parallel training each worker takes
    the triplets of its own part of the batch.
    """
    embedding_BD = at_least_float32(embedding)
    if normalize:
        norm_B1 = torch.linalg.vector_norm(embedding_BD, dim=-1, keepdim=True)
        embedding_BD = embedding_BD / norm_B1.clamp_min(_LEAST_NORM)
    year_B = (age + 0.5).floor()
    anchor_K, positive_K, negative_K, real_K = hardest_triplets(
        _squared_distances(embedding_BD.detach()), year_B, top_k
    )
    # The distances are computed again for the mined triplets alone. The gradient then needs K rows,
    # and no large numbers are subtracted from each other.
    positive_distance_K = (embedding_BD[anchor_K] - embedding_BD[positive_K]).square().sum(-1)
    negative_distance_K = (embedding_BD[anchor_K] - embedding_BD[negative_K]).square().sum(-1)
    loss_K = (margin + positive_distance_K - negative_distance_K).relu() * real_K
    if reduction == "sum":
        return loss_K.sum()
    return loss_K.sum() / real_K.sum().clamp_min(1)


def _squared_distances(embedding_BD: Tensor) -> Tensor:
    # TF32 and cancellation would make a matrix product inaccurate.
    return torch.cdist(embedding_BD, embedding_BD, compute_mode="donot_use_mm_for_euclid_dist").square()
