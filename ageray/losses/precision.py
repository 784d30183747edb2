"""The number format that losses are computed in, whatever autocast gave."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32, or as it is where it is float64 already: half precision has too few digits for sums, exponentials and distances."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
