"""The detector for many photos at once, on one device.

The photos are searched in rounds (`ageray.faces.detect.in_rounds`): the first looks of all photos
are one batch of the network, the second looks of those that need one are the next, and so on. Each
photo has the faces that `YuNet` finds in it alone; points differ by less than 0.001 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ageray.experiment import Detect
from ageray.faces.detect import Face, Picture, Pixels, Rows, in_rounds, inside, search, with_least_sides
from ageray.faces.yunet_torch import TorchNetwork


class BatchYuNet:
    """The detector on a device. Threads may share it, but take turns."""

    def __init__(self, settings: Detect, device: torch.device) -> None:
        """Raises UserError if the weights are missing or damaged."""
        self._settings = settings
        self._net = TorchNetwork(settings.threshold, device)

    def detect(self, pictures: Sequence[Picture]) -> list[list[Face]]:
        """The faces of each photo, best score first."""
        return in_rounds([search(picture, self._settings) for picture in pictures], self._rows)

    def _rows(self, looks: list[Pixels]) -> list[Rows]:
        pictures = list(map(with_least_sides, looks))
        return list(map(inside, self._net.rows(pictures), pictures))
