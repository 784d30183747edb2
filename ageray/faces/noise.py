"""Normal numbers that a device counts out by itself: the same on every device, for any number of
workers, and without a generator whose state a checkpoint would have to hold.

A key and a place give the bits (SplitMix64: Steele, Lea and Flood, Fast Splittable Pseudorandom
Number Generators, OOPSLA 2014), and two halves of the bits two normal numbers (Box and Muller,
1958). No kernel waits, so it can be compiled and recorded as a CUDA graph; the key is a tensor.

Shape letters: F faces, N numbers a face.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ageray.faces.constants import constant

_STEP = 0x9E3779B97F4A7C15 - 2**64  # torch has int64, which overflows as unsigned numbers do
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64
_UNIFORM_BITS = 24  # as many as a float32 holds


def normal(key_F: Tensor, count: int) -> Tensor:
    """Standard normal numbers of each int64 key: (F, count) float32."""
    bits_FN = random_bits(key_F, (count + 1) // 2)
    uniform_FN = (bits_FN & (2**_UNIFORM_BITS - 1)) + 0.5  # in units of 2^-24; never 0
    radius_FN = torch.rsub(uniform_FN.log(), 2 * _UNIFORM_BITS * math.log(2), alpha=2).sqrt()
    angle_FN = (bits_FN >> (64 - _UNIFORM_BITS)) * (math.pi / 2 ** (_UNIFORM_BITS - 1))
    pairs_FN2: Tensor = torch.view_as_real(torch.polar(radius_FN, angle_FN))
    return pairs_FN2.flatten(1)[:, :count]


def random_bits(key_F: Tensor, count: int) -> Tensor:
    """The first `count` numbers of SplitMix64 from each state: (F, count) int64."""
    bits_FN = key_F[:, None] + constant(_steps, count, like=key_F)
    bits_FN = (bits_FN ^ _shifted(bits_FN, 30)) * _FIRST
    bits_FN = (bits_FN ^ _shifted(bits_FN, 27)) * _SECOND
    result_FN: Tensor = bits_FN ^ _shifted(bits_FN, 31)
    return result_FN


def _shifted(bits: Tensor, places: int) -> Tensor:
    """Right, with zeros from the left; torch repeats the sign."""
    shifted: Tensor = (bits >> places) & (2 ** (64 - places) - 1)
    return shifted


def _steps(count: int) -> Tensor:
    return torch.arange(1, count + 1) * _STEP
