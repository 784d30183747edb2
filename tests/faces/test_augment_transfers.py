"""What the random changes of a batch launch and send: they never wait for the device.

Faces on the `meta` device have no values, so that whatever would wait for a value fails.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ageray.experiment import Augment
from ageray.faces.augment import photometric

META = torch.device("meta")
ALL = Augment(
    gray=0.5, blur=0.5, downscale=0.5, jpeg=0.5, noise=0.5, erase=0.5, tint=0.3, gamma=0.3, saturation=0.3
)


class Census(TorchDispatchMode):
    """Counts copies from the CPU to the device, and operations on the device."""

    def __init__(self) -> None:
        super().__init__()
        self.copies, self.operations = Counter[str](), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.device == META:
            first = args[0] if args else None
            if isinstance(first, Tensor) and first.device.type == "cpu":
                self.copies[f"{func}"] += 1
            elif not func.is_view:
                self.operations += 1
        return result


def test_changes_wait_for_nothing_and_send_their_numbers_together() -> None:
    faces = torch.empty(8, 3, 64, 64, device=META)
    photometric(faces, ALL, Generator().manual_seed(0))  # makes the constants
    with Census() as census:
        changed = photometric(faces, ALL, Generator().manual_seed(0))
    assert changed.shape == faces.shape
    # One for the floats and one for the rows; Kornia's blur and JPEG sent two more.
    assert sum(census.copies.values()) == 2, census.copies
    assert census.operations <= 91, census.operations  # of them JPEG 36, noise 23


def test_colours_alone_are_two_copies() -> None:
    none = Augment(gray=0.5, blur=0, downscale=0, jpeg=0, noise=0, erase=0, tint=0.3, gamma=0.3)
    with Census() as census:
        photometric(torch.empty(8, 3, 64, 64, device=META), none, Generator().manual_seed(0))
    assert sum(census.copies.values()) == 2, census.copies
    assert census.operations <= 16, census.operations
