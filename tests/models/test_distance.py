"""Distance in feature space: against the inverse of the covariance, and what a file must hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ageray.errors import UserError
from ageray.models.distance import FeatureDistance


def features(count: int = 400, size: int = 12) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(count, size, generator=draw) * torch.linspace(3, 0.5, size) + torch.arange(size)


def test_full_rank_is_the_distance_of_mahalanobis() -> None:
    rows = features().double()
    distance = FeatureDistance.of(rows, rank=11)
    centred = (rows - rows.mean(0)).numpy()
    inverse = np.linalg.inv(np.cov(centred.T))
    expected = np.sqrt(np.einsum("nd,de,ne->n", centred, inverse, centred) / 12)
    assert distance(rows.float()).numpy() == pytest.approx(expected, rel=1e-3)


def test_training_faces_are_about_one_and_others_farther() -> None:
    distance = FeatureDistance.of(features(), rank=4)
    assert float(distance(features()).square().mean()) == pytest.approx(1, abs=0.02)
    beside = torch.zeros(1, 12)
    beside[0, 11] = 15  # in a direction of little variance
    assert float(distance(features().mean(0, keepdim=True) + beside)) > 2


def test_a_shift_in_a_thin_direction_counts_more() -> None:
    distance, mean = FeatureDistance.of(features(), rank=11), features().mean(0)
    wide, thin = torch.zeros(12), torch.zeros(12)
    wide[0], thin[11] = 2, 2
    assert float(distance((mean + thin)[None])) > 3 * float(distance((mean + wide)[None]))


def test_round_trip_and_broken_files() -> None:
    distance = FeatureDistance.of(features(), rank=4)
    again = FeatureDistance.from_tensors(distance.tensors())
    assert torch.equal(again(features()), distance(features()))
    lacking = {name: tensor for name, tensor in distance.tensors().items() if name != "rest"}
    with pytest.raises(UserError, match="lacks 'rest'"):
        FeatureDistance.from_tensors(lacking)
    with pytest.raises(UserError, match="do not fit"):
        FeatureDistance.from_tensors(distance.tensors() | {"variance": torch.ones(5)})
