"""Revised contrastive loss by gender, the second task of Jeong et al.

Shape letters: B faces, G features, P unordered pairs.
"""

from __future__ import annotations

from torch import Tensor

from ageray.losses.contrastive import pair_losses
from ageray.losses.mining import all_pairs


def gender_contrastive(gender_embedding: Tensor, gender: Tensor, *, q: float = 100.0) -> Tensor:
    """Mean over the unordered pairs of Z L+(D) + (1 - Z) L-(D) (section 2.6; Eq. 2 to 4).

    Z = 1 if the genders are equal. gender_embedding: (B, G), not normalised. gender: (B,) 0 male,
    1 female, -1 unknown. Pairs with an unknown gender are left out. A batch without a pair gives
    0, with a gradient of zeros.
    """
    first_P, second_P = all_pairs(len(gender), gender.device)
    known_P = (gender[first_P] >= 0) & (gender[second_P] >= 0)
    loss_P = pair_losses(gender_embedding, gender[first_P] == gender[second_P], q)
    return (loss_P * known_P).sum() / known_P.sum().clamp_min(1)
