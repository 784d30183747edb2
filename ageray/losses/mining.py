"""Which pairs and triplets of a batch count.

Each function returns index tensors that a loss consumes, as in pytorch-metric-learning. None of
them waits for the device, and none breaks a graph of torch.compile.

Shape letters: B faces, P unordered pairs, K triplets, R positions in an order by distance, S pairs
of positions.
"""

from __future__ import annotations

import torch
from torch import Tensor


def all_pairs(count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """First and second index, i < j, of all P = count (count - 1) / 2 unordered pairs.

    Each is (P,), in the order of torch.pdist.
    """
    first_P, second_P = torch.triu_indices(count, count, offset=1, device=device).unbind(0)
    return first_P, second_P


@torch.no_grad()
def hardest_triplets(
    distance_BB: Tensor, group_B: Tensor, top_k: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The `top_k` triplets with the largest D(a, p) - D(a, n), hardest first.

    A triplet has a != p and group(a) = group(p) != group(n). Returns four tensors of (K,), with
    K = min(top_k, number of candidates): the indices of anchor, positive and negative, and a mask
    of the real triplets. If a batch has fewer triplets, the last entries are not real and their
    indices mean nothing. A mask is returned, because the CPU would have to wait for a number.

    The triplet of an anchor's i-th farthest positive and j-th nearest negative is no harder than
    i j triplets, itself included. So only triplets with i j <= top_k can be among the hardest.
    That leaves about top_k log(top_k) candidates for each anchor, not B^2.
    """
    same_BB = group_B[:, None] == group_B[None, :]
    itself_BB = torch.eye(len(group_B), dtype=torch.bool, device=group_B.device)
    depth = min(top_k, len(group_B))
    farthest = distance_BB.masked_fill(~same_BB | itself_BB, -torch.inf).topk(depth)
    nearest = (-distance_BB).masked_fill(same_BB, -torch.inf).topk(depth)
    i_S, j_S = _candidate_positions(depth, top_k, group_B.device)
    gap_BS = farthest.values[:, i_S] + nearest.values[:, j_S]
    hardest = gap_BS.flatten().topk(min(top_k, gap_BS.numel()))
    anchor_K, column_K = hardest.indices // len(i_S), hardest.indices % len(i_S)
    positive_K = farthest.indices[anchor_K, i_S[column_K]]
    negative_K = nearest.indices[anchor_K, j_S[column_K]]
    # A NaN stays in, so that the loss becomes NaN and the training notices.
    return anchor_K, positive_K, negative_K, hardest.values != -torch.inf


def _candidate_positions(depth: int, top_k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The pairs (i - 1, j - 1) with i j <= top_k and i, j <= depth: (S,) each, row by row.

    Their number S comes from the two numbers, not from a tensor, so that no graph breaks here.
    """
    count = sum(min(depth, top_k // i) for i in range(1, depth + 1))
    lengths_R = (top_k // torch.arange(1, depth + 1, device=device)).clamp(max=depth)
    ends_R = lengths_R.cumsum(0)
    place_S = torch.arange(count, device=device)
    i_S = torch.searchsorted(ends_R, place_S, right=True)
    return i_S, place_S - (ends_R - lengths_R)[i_S]
