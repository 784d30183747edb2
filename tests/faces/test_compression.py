"""JPEG as matrix products is Kornia's differentiable JPEG, for faces of any size and quality."""

from __future__ import annotations

import pytest
import torch
from kornia.enhance import jpeg_codec_differentiable
from torch import Tensor

from ageray.faces import compression
from tests.faces.test_augment import faces

QUALITIES = torch.tensor([20.0, 36.7, 49.9, 50.1, 73.0, 90.0])


@pytest.mark.parametrize("size", [33, 48, 100, 128])
def test_faces_are_those_of_kornia(size: int) -> None:
    before = faces(6, size)
    expected = 255 * jpeg_codec_differentiable(before / 255, QUALITIES)
    apart = (compression.compressed(before, compression.tables(QUALITIES)) - expected).abs()
    # A coefficient half way between two steps may round either way, and changes its block.
    assert float(apart.median()) < 1e-4
    assert float((apart > 1e-3).float().mean()) < 1e-3
    assert float((expected - before).abs().mean()) > 1  # there is something to be equal in


def test_colours_out_of_range_are_those_of_kornia() -> None:
    """Strong edges between pure colours, which overshoot; a black and a white face."""
    strong = (faces(6, 64) > 128).float() * 255
    strong[4], strong[5] = 0, 255
    expected = 255 * jpeg_codec_differentiable(strong / 255, QUALITIES)
    apart = (compression.compressed(strong, compression.tables(QUALITIES)) - expected).abs()
    assert float((apart > 2e-3).float().mean()) < 1e-3


def test_tables_are_those_of_an_encoder() -> None:
    """libjpeg's, within the half step of each soft floor: that of the scale, in percent, is 1/8."""
    tables = compression.tables(torch.tensor([25.0, 50.0, 75.0]))
    for table, percent in zip(tables, (200, 100, 50), strict=True):
        for steps, base in zip(table, (compression._LUMA, compression._CHROMA), strict=True):
            expected = ((torch.tensor(base) * percent + 50) / 100).floor().clamp(1, 255)
            torch.testing.assert_close(steps, expected, rtol=2e-3, atol=1.0)


@pytest.mark.parametrize("size", [16, 40])
def test_without_rounding_the_luma_comes_back(size: int) -> None:
    there, back = compression.luma_matrices(size)
    torch.testing.assert_close(back.T @ there, torch.eye(size).double())
    there, back = compression.chroma_matrices(size)
    line: Tensor = torch.full((size, 1), 7.0).double()
    torch.testing.assert_close(back.T @ there @ line, line)
