"""Constant tensors on a device, made once.

A tensor that is made on the CPU and copied to a GPU makes the host wait, and cannot be part of a
CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor


def constant(make: Callable[..., Tensor], *arguments: Any, like: Tensor) -> Tensor:
    """`make(*arguments)` with the type and on the device of `like`. It must not be written to.

    make: a function of a module, not one made on the fly; arguments: hashable. On a CPU the tensor
    is made anew, elsewhere it is kept for the next call.
    """
    if like.device.type == "cpu":
        return make(*arguments).to(like)
    return _on_device(make, arguments, like.device, like.dtype)


@cache
def _on_device(
    make: Callable[..., Tensor], arguments: tuple[Any, ...], device: torch.device, dtype: torch.dtype
) -> Tensor:
    with torch.inference_mode(False):  # so that training can take it too
        return make(*arguments).to(device, dtype)
