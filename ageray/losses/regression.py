"""Error of the posterior's expectation (Shang and Ai, section 3.3).

Shape letters: B faces, K bins.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ageray.losses.posterior import expectation, log_posterior
from ageray.losses.precision import at_least_float32


def regression(logits: Tensor, age: Tensor, bins: Tensor, *, norm: Literal["l1", "l2"] = "l1") -> Tensor:
    """Mean over the batch of E_r = |y - sum_k p_k y_k| in years, or of its square.

    logits: (B, K). age: (B,) years, y, not rounded. bins: (K,) years, y_k. norm: `l2` squares.
    The paper does not define its prediction. We take the posterior's expectation, as in decoding.
    The expectation cannot leave the bins: for an age outside them the error is at least its
    distance to the outermost bin.
    """
    error_B = expectation(log_posterior(logits), bins) - age
    if norm == "l1":
        return error_B.abs().mean()
    return error_B.square().mean()


def number_error(number: Tensor, age: Tensor, *, norm: Literal["l1", "l2"] = "l1") -> Tensor:
    """The same of one regressed age: mean over the batch of |y - number| in years, or of its
    square.

    number: (B, 1) years, of `model.classifier: number`. age: (B,) years, y.
    """
    error_B = at_least_float32(number).squeeze(-1) - age
    if norm == "l1":
        return error_B.abs().mean()
    return error_B.square().mean()
