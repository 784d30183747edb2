"""Averages of weights against arithmetic on single numbers, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ageray.errors import UserError
from ageray.models.average import interpolate, soup


def state(value: float, count: int = 3) -> dict[str, Tensor]:
    return {"layer.weight": torch.full((2, 2), value), "norm.num_batches_tracked": torch.tensor(count)}


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1.0), (0.25, 2.0), (1.0, 5.0)])
def test_interpolation_goes_from_the_start_to_the_end(share: float, expected: float) -> None:
    mixed = interpolate(state(1.0, 3), state(5.0, 7), share)
    torch.testing.assert_close(mixed["layer.weight"], torch.full((2, 2), expected))
    assert int(mixed["norm.num_batches_tracked"]) == 7


def test_a_soup_is_the_weighted_mean() -> None:
    torch.testing.assert_close(
        soup([state(1.0), state(2.0), state(6.0)])["layer.weight"], torch.full((2, 2), 3.0)
    )
    weighted = soup([state(1.0), state(5.0)], [3, 1])
    torch.testing.assert_close(weighted["layer.weight"], torch.full((2, 2), 2.0))
    assert weighted["norm.num_batches_tracked"].dtype == torch.int64


def test_the_inputs_stay_as_they_are() -> None:
    start, end = state(1.0), state(5.0)
    interpolate(start, end, 0.5)["layer.weight"].zero_()
    soup([start, end])["layer.weight"].zero_()
    assert float(start["layer.weight"][0, 0]) == 1.0
    assert float(end["layer.weight"][0, 0]) == 5.0


def test_different_networks_are_refused() -> None:
    other = {"layer.weight": torch.zeros(3, 2), "norm.num_batches_tracked": torch.tensor(1)}
    for call in (lambda: interpolate(state(1), other, 0.5), lambda: soup([state(1), other])):
        with pytest.raises(
            UserError, match=r"weights 1 and 2 are of different networks \(layer.weight differs\)"
        ):
            call()
