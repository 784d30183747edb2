"""The noise's numbers are SplitMix64's and normal, and none says anything about another."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats  # type: ignore[import-untyped]
from torch import Generator, Tensor

from ageray.experiment import Augment
from ageray.faces import noise
from ageray.faces.augment import photometric
from tests.faces.test_augment import only, seeded

COUNT = 3 * 64 * 64


def keys(count: int) -> Tensor:
    return torch.randint(-(2**63), 2**63 - 1, (count,), generator=Generator().manual_seed(0))


def test_bits_are_those_of_splitmix64() -> None:
    """The published first numbers from the state 1234567, and from another with the sign's bit."""
    bits = noise.random_bits(torch.tensor([1234567, -5]), 3)
    assert [number % 2**64 for number in bits[0].tolist()] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]
    state, expected = 2**64 - 5, []
    for _ in range(3):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        number = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        number = (number ^ (number >> 27)) * 0x94D049BB133111EB % 2**64
        expected.append(number ^ (number >> 31))
    assert [number % 2**64 for number in bits[1].tolist()] == expected


def test_numbers_are_normal() -> None:
    numbers = noise.normal(keys(40), COUNT)
    count = numbers.numel()
    assert numbers.dtype == torch.float32
    assert abs(float(numbers.mean())) < 4 / math.sqrt(count)
    assert float(numbers.std()) == pytest.approx(1, abs=4 / math.sqrt(2 * count))
    assert float(stats.kurtosis(numbers.flatten())) == pytest.approx(0, abs=4 * math.sqrt(24 / count))
    assert stats.kstest(numbers.flatten().numpy(), "norm").pvalue > 0.01
    assert 4 < float(numbers.abs().max()) < 6


def test_no_number_says_anything_about_another() -> None:
    """Neighbours across and down, channels, the two of a pair, and faces with keys side by side."""
    face = noise.normal(torch.tensor([7, 8]), COUNT).view(2, 3, 64, 64)
    pairs = {
        "across": (face[..., 1:], face[..., :-1]),
        "down": (face[..., 1:, :], face[..., :-1, :]),
        "channels": (face[:, 1:], face[:, :-1]),
        "faces": (face[0], face[1]),
        "squares": (face[..., 0::2].square(), face[..., 1::2].square()),
    }
    for name, (one, other) in pairs.items():
        both = torch.stack([one.flatten(), other.flatten()])
        assert abs(float(torch.corrcoef(both)[0, 1])) < 4 / math.sqrt(both.shape[1]), name


@pytest.mark.parametrize("count", [1, 5, 8])
def test_a_number_depends_on_key_and_place_alone(count: int) -> None:
    key = keys(3)
    numbers = noise.normal(key, 8)
    torch.testing.assert_close(noise.normal(key[1:], count), numbers[1:, :count], rtol=0, atol=0)


def test_noise_of_faces_is_normal_with_the_drawn_deviation() -> None:
    before = torch.full((50, 3, 64, 64), 127.0)
    change = (photometric(before, only(noise=1), seeded()) - before).flatten(1)
    change /= change.std(1, keepdim=True)
    assert abs(float(change.mean())) < 4 / math.sqrt(change.numel())
    assert stats.kstest(change.flatten().numpy(), "norm").pvalue > 0.01


def test_workers_add_the_noise_that_one_would() -> None:
    augment, before = Augment(noise=0.5, jpeg=0.5, blur=0.5), torch.rand(8, 3, 48, 48) * 255
    generators = [seeded(), seeded(), seeded()]
    whole = photometric(before, augment, generators[2])
    parts = [photometric(before[4 * rank :][:4], augment, generators[rank], rank, 2) for rank in range(2)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-3)
    for generator in generators[:2]:
        assert torch.equal(generator.get_state(), generators[2].get_state())
