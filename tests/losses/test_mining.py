"""Index tuples: all pairs, and the hardest triplets against a search through all of them."""

from __future__ import annotations

from itertools import combinations, permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.utils.loss_and_miner_utils import get_all_triplets_indices  # type: ignore[import-untyped]
from torch import Tensor

from ageray.losses.mining import all_pairs, hardest_triplets


def distances(count: int, seed: int = 0) -> Tensor:
    """Not symmetric and not a metric: mining must not need either."""
    return torch.rand(count, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def searched(distance: Tensor, groups: list[int]) -> list[tuple[float, int, int, int]]:
    """Every triplet with D(a, p) - D(a, n), the largest first."""
    gaps = [
        (float(distance[a, p] - distance[a, n]), a, p, n)
        for a, p, n in permutations(range(len(groups)), 3)
        if groups[a] == groups[p] != groups[n]
    ]
    return sorted(gaps, reverse=True)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_all_pairs(count: int) -> None:
    first, second = all_pairs(count, torch.device("cpu"))
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == list(combinations(range(count), 2))


def test_pairs_are_in_the_order_of_pdist() -> None:
    first, second = all_pairs(9, torch.device("cpu"))
    points = distances(9)
    torch.testing.assert_close(torch.pdist(points), torch.cdist(points, points)[first, second])


@given(
    groups=st.lists(st.integers(0, 3), min_size=1, max_size=9),
    top_k=st.integers(1, 400),
    seed=st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_hardest_triplets_equal_a_search(groups: list[int], top_k: int, seed: int) -> None:
    distance = distances(len(groups), seed)
    anchor, positive, negative, real = hardest_triplets(distance, torch.tensor(groups), top_k)
    got = torch.stack([anchor, positive, negative], 1)[real].tolist()
    assert got == [[a, p, n] for _, a, p, n in searched(distance, groups)[:top_k]]


def test_ties_leave_as_many_triplets_of_the_same_hardness() -> None:
    """With all distances equal any choice is right, but each triplet may come once only."""
    groups = [0, 0, 0, 1, 1, 2]
    anchor, positive, negative, real = hardest_triplets(torch.ones(6, 6), torch.tensor(groups), 10)
    chosen = set(zip(anchor.tolist(), positive.tolist(), negative.tolist(), strict=True))
    assert bool(real.all())
    assert len(chosen) == 10
    assert chosen <= {(a, p, n) for _, a, p, n in searched(torch.ones(6, 6), groups)}


def test_all_triplets_are_those_of_pytorch_metric_learning() -> None:
    years = torch.tensor([20, 20, 31, 31, 31, 7, 50])
    anchor, positive, negative, real = hardest_triplets(distances(7), years, 1000)
    got = {tuple(row) for row in torch.stack([anchor, positive, negative], 1)[real].tolist()}
    expected = {tuple(row) for row in torch.stack(get_all_triplets_indices(years), 1).tolist()}
    assert got == expected
    assert int(real.sum()) == len(expected)


@pytest.mark.parametrize("groups", [[4], [1, 2, 3], [5, 5, 5]])
def test_no_triplet_is_real_where_there_is_none(groups: list[int]) -> None:
    *_, real = hardest_triplets(distances(len(groups)), torch.tensor(groups), 8)
    assert not bool(real.any())


def test_a_large_batch_needs_no_cube() -> None:
    """The candidates of 128 faces for 64 triplets: those with i j <= 64, hundreds an anchor instead
    of 16,384.
    """
    distance = distances(128).float()
    anchor, positive, negative, real = hardest_triplets(distance, torch.arange(128) % 2, 64)
    same = torch.arange(128) % 2 == (torch.arange(128) % 2)[:, None]
    pairs = distance.masked_fill(~same | torch.eye(128, dtype=torch.bool), -9).unsqueeze(
        2
    ) - distance.masked_fill(same, 9).unsqueeze(1)
    expected = pairs.flatten().topk(64).values
    torch.testing.assert_close(distance[anchor, positive] - distance[anchor, negative], expected)
    assert bool(real.all())
