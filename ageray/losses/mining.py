"""Which pairs and triplets of a batch count: index tuples that a loss consumes, as in pytorch-metric-learning.

Shape letters: B faces, P unordered pairs, K triplets, R ranks, S pairs of ranks. Nothing here waits for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor


def all_pairs(count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """First and second index, i < j, of all P = count (count - 1) / 2 unordered pairs: (P,) each, in the order of torch.pdist."""
    first_P, second_P = torch.triu_indices(count, count, offset=1, device=device).unbind(0)
    return first_P, second_P


@torch.no_grad()
def hardest_triplets(
    distance_BB: Tensor, group_B: Tensor, top_k: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Anchor, positive and negative of the `top_k` triplets with the largest D(a, p) - D(a, n), hardest first, and which of them are real.

    Of all triplets with a != p, group(a) = group(p) != group(n). Where a batch has fewer, the last are not real (False in the fourth) and
    their indices mean nothing: a mask, as the number itself would have to be waited for. Four of (K,), K = min(top_k, ranked candidates).

    A triplet of an anchor's i-th farthest positive and j-th nearest negative is no harder than i j triplets, itself among them; so only
    those with i j <= top_k can be among the hardest. That leaves at most about top_k log(top_k) candidates an anchor, not B^2.
    """
    same_BB = group_B[:, None] == group_B[None, :]
    itself_BB = torch.eye(len(group_B), dtype=torch.bool, device=group_B.device)
    ranks = min(top_k, len(group_B))
    farthest = distance_BB.masked_fill(~same_BB | itself_BB, -torch.inf).topk(ranks)
    nearest = (-distance_BB).masked_fill(same_BB, -torch.inf).topk(ranks)
    i_S, j_S = (rank_S.to(group_B.device, non_blocking=True) for rank_S in _ranks_to_try(ranks, top_k))
    gap_BS = farthest.values[:, i_S] + nearest.values[:, j_S]
    hardest = gap_BS.flatten().topk(min(top_k, gap_BS.numel()))
    anchor_K, column_K = hardest.indices // len(i_S), hardest.indices % len(i_S)
    positive_K, negative_K = (
        farthest.indices[anchor_K, i_S[column_K]],
        nearest.indices[anchor_K, j_S[column_K]],
    )
    return (
        anchor_K,
        positive_K,
        negative_K,
        hardest.values != -torch.inf,
    )  # what is not a number stays, to be noticed


def _ranks_to_try(ranks: int, top_k: int) -> tuple[Tensor, Tensor]:
    rank_R = torch.arange(1, ranks + 1)
    i_S, j_S = (rank_R[:, None] * rank_R[None, :] <= top_k).nonzero().unbind(1)
    return i_S, j_S
