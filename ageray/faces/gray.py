"""Gray pictures of 16 and 32 bits, and of floating point numbers, as 8 bits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_WHITES = (1.0, 255.0, 1023.0, 4095.0, 65535.0, 2.0**31 - 1, 2.0**32 - 1)
"""Values that programs write for white: 1 in floats; 8, 10, 12, 16, 31 and 32 bits."""


def to_eight_bits(gray: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Gray values (H, W) of any type as uint8, scaled by their range.

    White is the least of the usual whites that no value exceeds, or else the largest value. 1 is
    white only for floats. Black is 0, or the least value if some are negative. NaN becomes black,
    infinity white.
    """
    values = np.asarray(gray, np.float32)
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros(values.shape, np.uint8)
    least, most = float(values[finite].min()), float(values[finite].max())
    black = min(0.0, least)
    whites = _WHITES[1:] if np.issubdtype(gray.dtype, np.integer) else _WHITES
    white = next((white for white in whites if most - black <= white), most - black)
    shares = np.nan_to_num((values - black) / np.float32(white), nan=0.0, posinf=1.0, neginf=0.0)
    return np.asarray(np.floor(np.clip(shares * 255.999, 0, 255)), np.uint8)
