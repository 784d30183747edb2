"""The cluster module: Eq. 2 and its draws, Eq. 3 against Algorithm 1 face by face, k-means++
against scipy, what is saved.
"""

from __future__ import annotations

import copy
import math
import re

import numpy as np
import pytest
import torch
from scipy.cluster.vq import kmeans2
from scipy.stats import chisquare
from torch import Tensor

from ageray.errors import UserError
from ageray.models.clusters import Clusters, draw, kmeans, probabilities, seeds, updated_centroids

DOUBLE = torch.float64


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = DOUBLE) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=dtype)


def blobs(each: int, places: list[tuple[float, ...]], spread: float = 0.3, seed: int = 0) -> Tensor:
    """So many points about each place, blob after blob."""
    centres = torch.tensor(places)
    points = (
        centres.repeat_interleave(each, 0)
        + spread * normal(each * len(places), centres.shape[1], seed=seed).float()
    )
    return points[torch.randperm(len(points), generator=seeded(seed))]


# --- Eq. 2 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("clusters", [1, 3, 5, 7])
def test_probabilities_are_eq_2(clusters: int) -> None:
    features, centroids = normal(9, 4), normal(clusters, 4, seed=1)
    got = probabilities(features, centroids)
    for face, row in zip(features.tolist(), got.tolist(), strict=True):
        shares = [
            1 / sum((x - u) ** 2 for x, u in zip(face, place, strict=True)) for place in centroids.tolist()
        ]
        assert row == pytest.approx([share / sum(shares) for share in shares], rel=1e-12)


def test_a_face_on_a_centroid_belongs_to_it_and_to_all_that_coincide_with_it() -> None:
    centroids = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 4.0], [1e-3, 0.0]])
    got = probabilities(torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.5, 2.0]]), centroids)
    assert got[0].tolist() == [1, 0, 0, 0]
    assert got[1].tolist() == [0, 0.5, 0.5, 0]
    assert got[2, 1] == got[2, 2]


def test_coinciding_centroids_alone_share_a_face_alike() -> None:
    assert probabilities(torch.ones(1, 3), torch.ones(4, 3)).tolist() == [[0.25] * 4]


@pytest.mark.parametrize("scale", [1e-17, 1e-6, 1e3, 1e17])
def test_probabilities_sum_to_one_at_any_scale(scale: float) -> None:
    features, centroids = normal(5, 3).float(), normal(4, 3, seed=1).float()
    got = probabilities(features * scale, centroids * scale)
    torch.testing.assert_close(got, probabilities(features, centroids), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(got.sum(1), torch.ones(5))


def test_a_near_face_far_from_the_origin_keeps_its_distance() -> None:
    """The expanded square ||x||^2 - 2 x u + ||u||^2 would lose it in float32."""
    centroids = torch.full((30, 2), 1000.0)
    centroids[:, 0] += torch.arange(30) + 1
    got = probabilities(torch.full((30, 2), 1000.0), centroids)[0]
    assert float(got[0] / got[1]) == pytest.approx(4, rel=1e-3)


def test_draws_come_as_often_as_eq_2_says() -> None:
    count = 40_000
    for face in normal(4, 6, seed=3):
        expected = probabilities(face[None], normal(5, 6, seed=4))
        drawn = draw(expected.float().expand(count, -1), torch.rand(count, generator=seeded(7)))
        counts = torch.bincount(drawn, minlength=5).numpy()
        assert chisquare(counts, count * expected[0].numpy()).pvalue > 1e-3
        flat = chisquare(counts).pvalue  # the test would notice: an even draw does not fit
        assert flat < 1e-6


@pytest.mark.parametrize(
    "row",
    [[0.0, 1.0, 0.0], [0.0, 0.3, 0.7], [0.7, 0.3, 0.0], [1.0, 0.0, 0.0], [0.1] * 10, [1 / 3] * 3 + [0.0]],
)
def test_a_cluster_of_probability_zero_is_never_drawn(row: list[float]) -> None:
    ends = torch.tensor([0.0, 1e-30, 0.3, 1 - 2**-24])
    drawn = draw(torch.tensor(row).expand(len(ends), -1), ends)
    assert all(row[cluster] > 0 for cluster in drawn.tolist())
    assert drawn.tolist() == sorted(drawn.tolist())


# --- Eq. 3 ----------------------------------------------------------------------------------------


def algorithm_1(centroids: Tensor, features: Tensor, cluster: Tensor, momentum: float) -> Tensor:
    """Line 7 of Algorithm 1, a face at a time."""
    result = centroids.clone()
    for face, number in zip(features, cluster.tolist(), strict=True):
        result[number] = momentum * result[number] + (1 - momentum) * face
    return result


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.999])
@pytest.mark.parametrize("clusters", [1, 3, 5, 7])
@pytest.mark.parametrize("faces", [1, 2, 64])
def test_moved_centroids_are_those_of_algorithm_1_face_by_face(
    faces: int, clusters: int, momentum: float
) -> None:
    centroids, features = normal(clusters, 8), normal(faces, 8, seed=1)
    cluster = torch.randint(clusters, (faces,), generator=seeded(2))
    expected = algorithm_1(centroids, features, cluster, momentum)
    torch.testing.assert_close(
        updated_centroids(centroids, features, cluster, momentum), expected, rtol=1e-12, atol=1e-12
    )
    single = updated_centroids(centroids.float(), features.float(), cluster, momentum)
    torch.testing.assert_close(single.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_cluster_without_a_face_stays_to_the_last_bit() -> None:
    centroids = normal(3, 8).float()
    got = updated_centroids(centroids, normal(4, 8, seed=1).float(), torch.tensor([2, 0, 2, 0]), 0.9)
    assert torch.equal(got[1], centroids[1])
    assert not torch.equal(got[0], centroids[0])


def test_the_order_of_a_clusters_faces_counts() -> None:
    features, cluster = normal(4, 2), torch.tensor([0, 1, 0, 0])
    turned = updated_centroids(torch.zeros(2, 2, dtype=DOUBLE), features.flip(0), cluster.flip(0), 0.5)
    assert not torch.allclose(
        turned[0], updated_centroids(torch.zeros(2, 2, dtype=DOUBLE), features, cluster, 0.5)[0]
    )


def test_a_moved_centroid_hands_its_gradient_to_its_faces() -> None:
    """(1 - alpha) alpha^(faces of the cluster that come later)."""
    features = normal(5, 3).requires_grad_()
    momentum, cluster = 0.9, torch.tensor([1, 0, 1, 1, 0])
    centroids = updated_centroids(normal(3, 3, seed=1), features, cluster, momentum)
    centroids.sum().backward()  # type: ignore[no-untyped-call]
    assert features.grad is not None
    later = [2, 1, 1, 0, 0]
    assert features.grad[:, 0].tolist() == pytest.approx([0.1 * 0.9**count for count in later])


def test_spread_between_clusters_has_a_gradient_which_is_that_of_finite_differences() -> None:
    """S_b of centroids that are plain buffers would have none."""
    centroids, cluster = normal(4, 3, seed=1), torch.tensor([0, 2, 2, 1, 0, 2])

    def between(features: Tensor) -> Tensor:
        return torch.pdist(updated_centroids(centroids, features, cluster, 0.999)).mean()

    features = normal(6, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(between(features), features)
    assert float(gradient.abs().min()) > 1e-6
    step = 1e-3
    for face in range(6):
        for axis in range(3):
            shift = torch.zeros_like(features)
            shift[face, axis] = step
            slope = (between(features + shift) - between(features - shift)) / (2 * step)
            assert float(gradient[face, axis]) == pytest.approx(float(slope.detach()), rel=1e-4)
    assert torch.autograd.gradcheck(between, (features,))


# --- k-means++ ------------------------------------------------------------------------------------

FAR = [(0.0, 0.0, 0.0), (10.0, 0.0, 0.0), (0.0, 12.0, 0.0), (0.0, 0.0, 14.0), (9.0, 9.0, 9.0)]


def in_order(points: Tensor) -> Tensor:
    """Rows sorted, for exact copies."""
    return torch.from_numpy(points.numpy()[np.lexsort(points.numpy().T)])


@pytest.mark.parametrize("seed", range(5))
def test_separate_blobs_are_found(seed: int) -> None:
    centroids = kmeans(blobs(60, FAR, seed=seed), 5, seeded(seed))
    distance = torch.cdist(centroids, torch.tensor(FAR))
    assert sorted(distance.argmin(1).tolist()) == [0, 1, 2, 3, 4]
    assert float(distance.amin(1).max()) < 0.2


@pytest.mark.parametrize("clusters", [1, 3, 7])
def test_from_the_same_seeds_scipy_ends_at_the_same_centroids(clusters: int) -> None:
    """On points without clear clusters, where the end depends on the beginning."""
    points = normal(400, 5, seed=8).float()
    first = seeds(points, clusters, seeded(9))
    expected, _ = kmeans2(points.double().numpy(), first.double().numpy(), iter=100, minit="matrix")
    centroids = kmeans(points, clusters, seeded(9))
    torch.testing.assert_close(centroids.double(), torch.from_numpy(expected), rtol=1e-4, atol=1e-5)
    assert float((centroids - first).abs().max()) > 0.1


def test_seeds_are_faces_drawn_by_squared_distance() -> None:
    points = torch.tensor([[0.0], [1.0], [3.0]])
    counts = {(0.0, 1.0): 0, (0.0, 3.0): 0, (1.0, 0.0): 0, (1.0, 3.0): 0, (3.0, 0.0): 0, (3.0, 1.0): 0}
    generator, count = seeded(), 1500
    for _ in range(count):
        first, second = seeds(points, 2, generator).squeeze(1).tolist()
        counts[first, second] += 1
    shares = [1 / 10, 9 / 10, 1 / 5, 4 / 5, 9 / 13, 4 / 13]
    assert chisquare(list(counts.values()), [count / 3 * share for share in shares]).pvalue > 1e-3


def test_the_generator_alone_decides() -> None:
    points = normal(200, 4).float()
    torch.manual_seed(1)
    first = kmeans(points, 4, seeded(5))
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(kmeans(points, 4, seeded(5)), first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_as_many_faces_as_clusters() -> None:
    points = normal(4, 3).float()
    assert torch.equal(in_order(kmeans(points, 4, seeded())), in_order(points))


@pytest.mark.parametrize(("faces", "different"), [(3, 3), (40, 2), (1, 1)])
def test_fewer_different_faces_than_clusters_are_refused(faces: int, different: int) -> None:
    points = normal(different, 3).float().repeat(faces // different, 1)
    with pytest.raises(UserError) as caught:
        kmeans(points, 5, seeded())
    assert re.match(
        rf"model\.clusters=5: the {faces} faces .* have {different} different .*; lower model\.clusters",
        str(caught.value),
    )
    assert "\n" not in str(caught.value)


def test_duplicates_are_no_trouble_where_enough_differ() -> None:
    points = normal(3, 4).float()
    centroids = kmeans(points.repeat_interleave(torch.tensor([50, 1, 7]), 0), 3, seeded())
    torch.testing.assert_close(in_order(centroids), in_order(points))


def test_features_that_are_not_finite_are_named() -> None:
    points = normal(20, 4).float()
    points[3, 1] = math.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        kmeans(points, 3, seeded())


# --- the module -----------------------------------------------------------------------------------


def started(clusters: int = 3, features: int = 4, momentum: float = 0.9) -> Clusters:
    module = Clusters(clusters, features, momentum)
    module.start(normal(60, features, seed=1).float(), seeded())
    return module


@pytest.mark.parametrize("clusters", [1, 3, 5, 7])
def test_many_steps_are_algorithm_1(clusters: int) -> None:
    """Draws from the probabilities at the start of a batch, then face by face, in float64."""
    module = started(clusters, momentum=0.9).double()
    by_hand = module.centroids.clone()
    torch.manual_seed(4)
    for step in range(6):
        features = normal(10, 4, seed=20 + step)
        state = torch.get_rng_state()
        result = module(features)
        torch.set_rng_state(state)
        shares = probabilities(features, by_hand).cumsum(1)
        drawn = [
            int((share <= level).sum()) for share, level in zip(shares, torch.rand(10).double(), strict=True)
        ]
        assert result.cluster_B.tolist() == drawn
        by_hand = algorithm_1(by_hand, features, torch.tensor(drawn), 0.9)
        torch.testing.assert_close(module.centroids, by_hand, rtol=1e-12, atol=1e-12)
        assert torch.equal(result.centroids_kD, module.centroids)
        assert torch.equal(result.features_GD, features)
        assert torch.equal(result.cluster_G, result.cluster_B)


def test_centroids_are_no_parameters_and_the_buffer_keeps_no_graph() -> None:
    module = started()
    result = module(normal(5, 4).float().requires_grad_())
    assert not list(module.parameters())
    assert result.centroids_kD.requires_grad
    assert not module.centroids.requires_grad
    assert module.centroids.grad_fn is None


def test_a_run_that_restores_torchs_generator_draws_the_same() -> None:
    one, other = started(), started()
    torch.manual_seed(3)
    one(normal(8, 4).float())
    state, saved = torch.get_rng_state(), copy.deepcopy(one.state_dict())
    first = one(normal(8, 4, seed=9).float())
    other.load_state_dict(saved)
    torch.set_rng_state(state)
    again = other(normal(8, 4, seed=9).float())
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(first, again, strict=True))


def test_what_is_saved() -> None:
    module = started()
    assert set(module.state_dict()) == {"centroids", "started"}
    fresh = Clusters(3, 4, 0.9)
    assert not bool(fresh.started)
    fresh.load_state_dict(module.state_dict())
    assert bool(fresh.started)
    assert torch.equal(fresh.centroids, module.centroids)


def test_half_precision_features_are_taken_in_float32() -> None:
    module, features = started(), normal(6, 4).bfloat16()
    same = started()
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        result = module(features)
    torch.manual_seed(0)
    expected = same(features.float())
    assert result.features_GD.dtype == result.centroids_kD.dtype == module.centroids.dtype == torch.float32
    assert torch.equal(result.cluster_G, expected.cluster_G)
    assert torch.equal(result.centroids_kD, expected.centroids_kD)


def test_nearest() -> None:
    module = Clusters(3, 2, 0.9)
    module.centroids.copy_(torch.tensor([[0.0, 0.0], [4.0, 0.0], [4.0, 0.0]]))
    assert module.nearest(torch.tensor([[1.0, 1.0], [3.0, 5.0], [2.0, 0.0]])).tolist() == [0, 1, 0]
