"""triplet, contrastive, gender_contrastive and cluster_scatter: naive loops, hand-worked values,
other packages, degenerate batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import combinations, permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import distances, losses, reducers  # type: ignore[import-untyped]
from torch import Tensor

from ageray.losses.cluster_scatter import cluster_scatter
from ageray.losses.contrastive import contrastive
from ageray.losses.gender_contrastive import gender_contrastive
from ageray.losses.triplet import triplet

AGES = torch.tensor([20.0, 20.4, 19.5, 31.0, 31.2, 24.0, 7.0, 20.0, 35.0, 27.9], dtype=torch.float64)
GENDERS = torch.tensor([0, 1, 1, 0, -1, 0, 1, -1, 0, 1])
CLUSTERS = torch.tensor([0, 1, 1, 3, 0, 0, 1, 3, 3, 0])  # none in 2
CENTROIDS = torch.randn(4, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def random_features(rows: int = len(AGES), size: int = 6, spread: float = 1.0) -> Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * spread


def scatter(features: Tensor) -> Tensor:
    return cluster_scatter(
        features, CLUSTERS[: len(features)], CENTROIDS.to(torch.promote_types(features.dtype, torch.float32))
    )


# each of the embedding alone, for the first faces of AGES
TERMS: dict[str, Callable[[Tensor], Tensor]] = {
    "triplet": lambda x: triplet(x, AGES[: len(x)], top_k=20),
    "triplet_raw_sum": lambda x: triplet(x, AGES[: len(x)], top_k=20, normalize=False, reduction="sum"),
    "contrastive": lambda x: contrastive(x, AGES[: len(x)], q=10),
    "contrastive_inclusive": lambda x: contrastive(x, AGES[: len(x)], inclusive=True),
    "gender_contrastive": lambda x: gender_contrastive(x, GENDERS[: len(x)], q=10),
    "cluster_scatter": scatter,
}
every_term = pytest.mark.parametrize("term", TERMS.values(), ids=TERMS)

# --- naive loops ----------------------------------------------------------------------------------


def naive_triplets(rows: list[list[float]], years: list[int], margin: float) -> list[float]:
    def distance(i: int, j: int) -> float:
        return sum((x - y) ** 2 for x, y in zip(rows[i], rows[j], strict=True))

    gaps = [
        max(0.0, margin + distance(a, p) - distance(a, n))
        for a, p, n in permutations(range(len(rows)), 3)
        if years[a] == years[p] != years[n]
    ]
    return sorted(gaps, reverse=True)


@pytest.mark.parametrize("top_k", [1, 7, 64, 5000])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("margin", [0.05, 0.5, 3.0])
def test_triplet_equals_a_naive_loop(top_k: int, normalize: bool, margin: float) -> None:
    embedding = random_features()
    rows = embedding.tolist()
    if normalize:
        rows = [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in rows]
    years = [math.floor(age + 0.5) for age in AGES.tolist()]  # 20.4, 19.5 and 20.0 are one year
    expected = naive_triplets(rows, years, margin)[:top_k]
    assert len(expected) == min(top_k, 4 * 3 * 6 + 2 * 1 * 8)
    call = partial(triplet, embedding, AGES, margin=margin, top_k=top_k, normalize=normalize)
    assert float(call(reduction="sum")) == pytest.approx(sum(expected), rel=1e-10)
    assert float(call()) == pytest.approx(sum(expected) / len(expected), rel=1e-10)


def naive_pair(x: list[float], y: list[float], same: bool, q: float) -> float:
    distance = sum(abs(a - b) for a, b in zip(x, y, strict=True))
    return 2 / q * distance**2 if same else 2 * q * math.exp(-2.77 / q * distance)


@pytest.mark.parametrize("margin", [0.3, 4.0, 100.0])
@pytest.mark.parametrize("inclusive", [False, True])
@pytest.mark.parametrize("q", [3.0, 100.0])
def test_contrastive_equals_a_naive_loop(margin: float, inclusive: bool, q: float) -> None:
    embedding = random_features()
    total, pairs = 0.0, list(combinations(range(len(AGES)), 2))
    for i, j in pairs:  # 20 and 24, 31 and 35 differ by exactly 4
        difference = abs(float(AGES[i]) - float(AGES[j]))
        same = difference <= margin if inclusive else difference < margin
        total += naive_pair(embedding[i].tolist(), embedding[j].tolist(), same, q)
    got = float(contrastive(embedding, AGES, margin=margin, q=q, inclusive=inclusive))
    assert got == pytest.approx(total / len(pairs), rel=1e-10)


@pytest.mark.parametrize("q", [3.0, 100.0])
def test_gender_contrastive_equals_a_naive_loop(q: float) -> None:
    embedding, genders = random_features(size=10), GENDERS.tolist()
    pairs = [(i, j) for i, j in combinations(range(len(genders)), 2) if genders[i] >= 0 and genders[j] >= 0]
    total = sum(
        naive_pair(embedding[i].tolist(), embedding[j].tolist(), genders[i] == genders[j], q)
        for i, j in pairs
    )
    assert len(pairs) == 28
    assert float(gender_contrastive(embedding, GENDERS, q=q)) == pytest.approx(total / 28, rel=1e-10)


def test_cluster_scatter_equals_a_naive_loop() -> None:
    features = random_features()
    rows, centres = features.tolist(), CENTROIDS.tolist()
    within = sum(
        math.dist(row, centres[own]) for row, own in zip(rows, CLUSTERS.tolist(), strict=True)
    ) / len(rows)
    between = sum(math.dist(centres[i], centres[j]) for i, j in permutations(range(4), 2)) / 12
    assert float(cluster_scatter(features, CLUSTERS, CENTROIDS)) == pytest.approx(within / between, rel=1e-12)


# --- known values ---------------------------------------------------------------------------------


def test_triplets_on_a_line_by_hand() -> None:
    """Two faces of 30 at 0 and 1, one of 50 at 3: D is 1 between them, 9 and 4 to the third; margin
    5 leaves 5+1-4 = 2 and none.
    """
    embedding, age = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([30.0, 30.0, 50.0])
    call = partial(triplet, embedding, age, margin=5.0, normalize=False)
    assert float(call(reduction="sum")) == pytest.approx(2)
    assert float(call()) == pytest.approx(1)
    assert float(call(top_k=1)) == pytest.approx(2)


def test_equal_age_is_the_same_rounded_year() -> None:
    embedding = random_features(3)
    for other, equal in ((20.49, True), (19.5, True), (20.5, False), (19.49, False)):
        loss = triplet(embedding, torch.tensor([20.0, other, 70.0]), margin=9.0)
        assert (float(loss) > 0) == equal


def test_normalising_takes_the_scale_out() -> None:
    embedding = random_features()
    torch.testing.assert_close(triplet(embedding * 1e3, AGES), triplet(embedding, AGES))
    assert float(triplet(embedding, AGES, margin=0.5)) <= 4.5


def test_contrastive_by_hand() -> None:
    """Q = 100. At L1 distance 5 a pair of one class has 2/100 * 25 = 0.5, a pair of two classes has
    200 exp(-2.77 * 5 / 100). Equal features have 0 and 200.
    """
    embedding = torch.tensor([[1.0, 2.0], [4.0, 0.0]])
    assert float(contrastive(embedding, torch.tensor([20.0, 22.0]))) == pytest.approx(0.5)
    assert float(contrastive(embedding, torch.tensor([20.0, 40.0]))) == pytest.approx(200 * math.exp(-0.1385))
    assert float(contrastive(torch.zeros(2, 3), torch.tensor([20.0, 40.0]))) == pytest.approx(200)
    assert float(gender_contrastive(embedding, torch.tensor([1, 1]))) == pytest.approx(0.5)
    assert float(gender_contrastive(embedding, torch.tensor([1, 0]))) == pytest.approx(
        200 * math.exp(-0.1385)
    )


def test_cluster_scatter_by_hand() -> None:
    """Centroids 0, 6 and 8i: distances 6, 8, 10, mean 8. Faces 3, 0 and 3 off: mean 2."""
    centroids = torch.tensor([[0.0, 0.0], [6.0, 0.0], [0.0, 8.0]])
    features = torch.tensor([[3.0, 0.0], [6.0, 0.0], [6.0, 3.0]])
    assert float(cluster_scatter(features, torch.tensor([0, 1, 1]), centroids)) == pytest.approx(2 / 8)
    assert float(cluster_scatter(features, torch.tensor([0, 0, 0]), centroids[:1])) == pytest.approx(
        (3 + 6 + math.sqrt(45)) / 3
    )


def test_both_parts_of_cluster_scatter_move_fresh_centroids() -> None:
    """With u* = alpha u + (1 - alpha) x the face feels S_b, to push its centroid away; with u alone
    it feels S_w only.
    """
    x = torch.tensor([[1.0, 0.0]], requires_grad=True)
    fixed = torch.tensor([[0.0, 0.0], [-4.0, 0.0]])
    (stay,) = torch.autograd.grad(cluster_scatter(x, torch.tensor([0]), fixed), x)
    fresh = torch.stack([0.9 * fixed[0] + 0.1 * x[0], fixed[1]])  # 0.1: S_w = 0.9 x, S_b = 4 + 0.1 x
    (moved,) = torch.autograd.grad(cluster_scatter(x, torch.tensor([0]), fresh), x)
    assert stay[0].tolist() == pytest.approx([1 / 4, 0])
    assert moved[0].tolist() == pytest.approx([(0.9 * 4.1 - 0.9 * 0.1) / 4.1**2, 0])


# --- other packages -------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [True, False])
def test_triplet_on_all_triplets_equals_pytorch_metric_learning(normalize: bool) -> None:
    embedding, years = random_features(), (AGES + 0.5).floor().long()
    squared = distances.LpDistance(normalize_embeddings=normalize, p=2, power=2)
    theirs = losses.TripletMarginLoss(margin=0.5, distance=squared, reducer=reducers.MeanReducer())
    torch.testing.assert_close(
        triplet(embedding, AGES, top_k=5000, normalize=normalize), theirs(embedding, years)
    )


def test_pairs_of_one_gender_equal_pytorch_metric_learning() -> None:
    """For pairs of one class 2/Q D^2 is their positive part on the squared L1 distance."""
    embedding, same = random_features(), torch.ones(len(AGES), dtype=torch.long)
    squared = distances.LpDistance(normalize_embeddings=False, p=1, power=2)
    theirs = losses.ContrastiveLoss(distance=squared, reducer=reducers.MeanReducer())
    torch.testing.assert_close(gender_contrastive(embedding, same, q=2.0), theirs(embedding, same))


# --- gradients and degenerate batches -------------------------------------------------------------


@every_term
def test_gradient_in_float64(term: Callable[[Tensor], Tensor]) -> None:
    assert torch.autograd.gradcheck(term, (random_features().requires_grad_(),))


def test_gradient_of_centroids_in_float64() -> None:
    features = random_features().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, u: cluster_scatter(x, CLUSTERS, u), (features, CENTROIDS.clone().requires_grad_())
    )


NOTHING: dict[str, Callable[[Tensor], Tensor]] = {
    "all ages equal": lambda x: triplet(x, torch.full((len(x),), 30.0)),
    "all ages different": lambda x: triplet(x, torch.arange(len(x)) * 1.0),
    "triplet of one face": lambda x: triplet(x[:1], AGES[:1]),
    "contrastive of one face": lambda x: contrastive(x[:1], AGES[:1]),
    "gender of one face": lambda x: gender_contrastive(x[:1], GENDERS[:1]),
    "no known gender": lambda x: gender_contrastive(x, torch.full((len(x),), -1)),
    "one known gender": lambda x: gender_contrastive(x, torch.where(torch.arange(len(x)) == 2, 1, -1)),
}


@pytest.mark.parametrize("term", NOTHING.values(), ids=NOTHING)
def test_nothing_mined_is_a_zero_that_still_goes_backward(term: Callable[[Tensor], Tensor]) -> None:
    embedding = random_features().float().requires_grad_()
    loss = term(embedding)
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == 0
    assert embedding.grad is not None
    assert not embedding.grad.any()


@every_term
@pytest.mark.parametrize("size", [0.0, 1e-20, 1e4, -1e4])
@pytest.mark.parametrize("rows", [1, 2, 10])
def test_degenerate_features_stay_finite(term: Callable[[Tensor], Tensor], size: float, rows: int) -> None:
    """All faces alike (a distance of 0 has no direction), or far away."""
    for features in (torch.full((rows, 6), size), random_features(rows).float() * size):
        loss = term(features.requires_grad_())
        (gradient,) = torch.autograd.grad(loss, features)
        assert bool(torch.isfinite(loss))
        assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("count", [1, 2, 5])
def test_centroids_that_coincide_stay_finite(count: int) -> None:
    features, centroids = random_features(3).float(), torch.ones(count, 6).requires_grad_()
    loss = cluster_scatter(features, torch.zeros(3, dtype=torch.int64), centroids)
    (gradient,) = torch.autograd.grad(loss, centroids)
    assert bool(torch.isfinite(loss))
    assert bool(torch.isfinite(gradient).all())


@every_term
def test_what_is_not_a_number_is_not_hidden(term: Callable[[Tensor], Tensor]) -> None:
    features = random_features()
    features[3, 2] = float("nan")
    assert bool(torch.isnan(term(features)))


@every_term
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_gives_a_float32_loss(term: Callable[[Tensor], Tensor], kind: torch.dtype) -> None:
    features = random_features().to(kind).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = term(features)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, term(features.float()))
    (gradient,) = torch.autograd.grad(loss, features)
    assert gradient.dtype == kind


@given(order=st.permutations(range(len(AGES))))
@settings(max_examples=20, deadline=None)
def test_the_order_of_the_faces_does_not_matter(order: list[int]) -> None:
    x = random_features()
    torch.testing.assert_close(triplet(x[order], AGES[order], top_k=9), triplet(x, AGES, top_k=9))
    torch.testing.assert_close(contrastive(x[order], AGES[order]), contrastive(x, AGES))
    torch.testing.assert_close(gender_contrastive(x[order], GENDERS[order]), gender_contrastive(x, GENDERS))
    torch.testing.assert_close(cluster_scatter(x[order], CLUSTERS[order], CENTROIDS), scatter(x))


def test_hard_triplets_alone_have_a_gradient() -> None:
    """The one hardest triplet's three faces move, no other face does."""
    embedding = random_features().requires_grad_()
    (gradient,) = torch.autograd.grad(triplet(embedding, AGES, top_k=1, normalize=False), embedding)
    assert int((gradient != 0).any(-1).sum()) == 3
