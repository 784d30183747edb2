"""The floating-point type that losses are computed in, whatever autocast gave."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor as float32; float64 stays float64.

    Half precision has too few digits for sums, exponentials and distances.
    """
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
