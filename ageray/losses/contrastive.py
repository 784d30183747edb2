"""Revised contrastive loss on all pairs of the batch (Jeong et al.).

Shape letters: B faces, D features, P unordered pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ageray.losses.mining import all_pairs
from ageray.losses.precision import at_least_float32


def contrastive(
    embedding: Tensor, age: Tensor, *, margin: float = 4.0, q: float = 100.0, inclusive: bool = False
) -> Tensor:
    """Mean over all unordered pairs of Z L+(D) + (1 - Z) L-(D) (Eq. 2).

    Z = 1 if the ages differ by less than `margin` (Eq. 3).

    embedding: (B, D), not normalised, because `q` sets its scale. age: (B,) years, not rounded.
    margin: years. inclusive: a difference equal to `margin` counts as one class too. The paper has
    both: section 2.4 includes it, section 3, with the figures, has 'less than 4'.
    A single face gives 0, with a gradient of zeros. In data-parallel training each worker takes
    the pairs of its own part of the batch.
    """
    first_P, second_P = all_pairs(len(age), age.device)
    difference_P = (age[first_P] - age[second_P]).abs()
    same_P = difference_P < margin
    if inclusive:
        same_P = difference_P <= margin
    return pair_losses(embedding, same_P, q).sum() / max(1, len(same_P))


def pair_losses(embedding_BD: Tensor, same_P: Tensor, q: float) -> Tensor:
    """The loss of each pair (Eq. 4), with D the L1 distance (Eq. 1): (P,).

    L+(D) = 2 / Q D^2 for pairs of one class, L-(D) = 2 Q exp(-2.77 D / Q) for the others.
    """
    distance_P = torch.pdist(at_least_float32(embedding_BD), p=1.0)
    return torch.where(same_P, 2 / q * distance_P.square(), 2 * q * torch.exp(-2.77 / q * distance_P))
