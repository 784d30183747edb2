"""YuNet in torch, for many pictures of different sizes at once: what a GPU runs.

The weights are read from the same ONNX file as the other engines' (`ageray.faces.yunet`). A picture
in a batch gives the rows that it gives alone: each lies in the upper left corner of its place, and
before every 3 x 3 convolution all beyond its own edge is set to zero, as the padding of a picture
alone is. Sides are multiples of 32, so no pooling window crosses that edge. The network computes in
float32 without TF32: in bfloat16, points move by up to 10 pixels.

Shape letters: B pictures, H and W sides of the largest, C channels, N cells that may be faces.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ageray.faces import yunet, yunet_graph
from ageray.faces.yunet import DIVISOR, STRIDES, Pixels, Rows

_MOST_PIXELS = {"cuda": 32 * 2**20, "cpu": 2**20}
"""Of a forward pass: about 3 GB of a GPU's memory. On a CPU a few pictures at a time are faster."""
_MOST_PADDING = 1.25
"""Pixels of a forward pass over those of its pictures, at most: others go into another pass."""

_STAGES = (1, 4, 2, 2, 2)
"""Units of each stage of the backbone; all stages but the last are followed by a pooling. The last
three give the levels."""
_KINDS = (1, 4, 1, 10)
"""Channels of the heads of a level: class, box, object, points."""


_Masks = dict[int, Tensor | None]
"""By stride, where the pictures of a batch are, (B, 1, H, W), 1 or 0; None if all have its size."""


class _Conv(NamedTuple):
    weight: Tensor
    bias: Tensor


class _Unit(NamedTuple):
    """A convolution of 1 x 1, then one of 3 x 3 for each channel alone."""

    point: _Conv
    depth: _Conv


class _Layers(NamedTuple):
    """The network. laterals and heads: by level, finest first; a level's heads are one unit."""

    stem: _Conv
    stages: list[list[_Unit]]
    laterals: list[_Unit]
    heads: list[_Unit]


class TorchNetwork:
    """YuNet on a device. Threads may share one, but take turns: it keeps the buffer from which
    pictures are sent."""

    def __init__(self, threshold: float, device: torch.device, channels_last: bool | None = None) -> None:
        """Faces below `threshold` are left out. channels_last: the order of values in memory. None
        takes that order on a CPU, where it is twice as fast. On a GPU it would make cuDNN do the
        convolutions of single channels, for which torch has kernels of its own. Raises UserError if
        the weights are missing or damaged."""
        if channels_last is None:
            channels_last = device.type == "cpu"
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._layers = _layers(yunet.weights_path(), device, self._format)
        self._threshold, self._device = threshold, device
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self._turn = threading.Lock()
        self._most_pixels = _MOST_PIXELS[device.type]

    def rows(self, pictures: Sequence[Pixels]) -> list[Rows]:
        """The faces of BGR pictures (H, W, 3) of any sizes, of each as `yunet.Network.rows` gives
        them."""
        rows: list[Rows] = [np.zeros((0, 15), np.float32)] * len(pictures)
        for group in _groups([_sides(picture) for picture in pictures], self._most_pixels):
            with self._turn:
                cells = self._cells([pictures[number] for number in group])
            places = cells[:, 0].astype(np.int64)
            for place, number in enumerate(group):
                rows[number] = yunet.suppress(cells[places == place, 1:], self._threshold)
        return rows

    @torch.inference_mode()
    def _cells(self, pictures: Sequence[Pixels]) -> Rows:
        """The cells of a forward pass whose score reaches the threshold: place of the picture, and
        its 15 columns; in the order of pictures, levels and cells."""
        sides = np.array([_sides(picture) for picture in pictures])
        height, width = sides.max(0).tolist()
        batch = self._sent(pictures, height, width)
        masks: _Masks = dict.fromkeys((2, 4, *STRIDES))
        if (sides != [height, width]).any():
            masks = _masks(torch.from_numpy(sides).to(self._device), height, width)
        with _float32(self._device):
            outputs = _forward(self._layers, batch, masks)
        return _faces(outputs, masks, self._threshold).cpu().numpy()

    def _sent(self, pictures: Sequence[Pixels], height: int, width: int) -> Tensor:
        """The pictures as (B, 3, H, W) on the device, float32, 0 beyond their edges. All go there
        in one copy. The buffer is free again when the rows have come back."""
        count = len(pictures) * height * width * 3
        if len(self._buffer) < count:
            self._buffer = torch.empty(count, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        flat = self._buffer[:count].view(len(pictures), height, width, 3)
        batch = flat.numpy()
        for place, picture in enumerate(pictures):
            rows, columns = picture.shape[:2]
            batch[place, :rows, :columns] = picture
            batch[place, rows:] = 0
            batch[place, :rows, columns:] = 0
        sent = flat.to(self._device, non_blocking=True).permute(0, 3, 1, 2)
        return sent.to(torch.float32, memory_format=self._format)


def _float32(device: torch.device) -> AbstractContextManager[None]:
    """Convolutions in float32 proper: torch lets cuDNN round their inputs to TF32."""
    if device.type != "cuda":
        return nullcontext()
    context: AbstractContextManager[None] = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    return context


def _sides(picture: Pixels) -> tuple[int, int]:
    """Height and width of a picture, rounded up as the network needs them."""
    return -(-picture.shape[0] // DIVISOR) * DIVISOR, -(-picture.shape[1] // DIVISOR) * DIVISOR


def _groups(sides: Sequence[tuple[int, int]], most: int) -> Iterator[list[int]]:
    """Pictures (numbers) of each forward pass: those of similar sizes, so that few pixels are
    padding, and of at most `most` pixels."""
    group: list[int] = []
    pixels = height = width = 0
    for number in sorted(range(len(sides)), key=lambda number: sides[number]):
        own = math.prod(sides[number])
        taller, wider = max(height, sides[number][0]), max(width, sides[number][1])
        area = taller * wider * (len(group) + 1)
        if group and (area > most or area > _MOST_PADDING * (pixels + own)):
            yield group
            group, pixels, taller, wider = [], 0, *sides[number]
        group.append(number)
        pixels, height, width = pixels + own, taller, wider
    if group:
        yield group


def _masks(sides: Tensor, height: int, width: int) -> _Masks:
    """The masks of pictures with these sides (B, 2)."""
    masks: _Masks = {}
    for stride in (2, 4, *STRIDES):
        limits = sides // stride
        rows = torch.arange(height // stride, device=sides.device) < limits[:, :1]
        columns = torch.arange(width // stride, device=sides.device) < limits[:, 1:]
        masks[stride] = (rows[:, None, :, None] & columns[:, None, None, :]).float()
    return masks


def _forward(layers: _Layers, batch: Tensor, masks: _Masks) -> list[Tensor]:
    """The heads of each level, (B, 16, H / stride, W / stride), before any sigmoid."""
    features = functional.conv2d(batch, *layers.stem, stride=2, padding=1).relu_()
    stride, levels = 2, []
    for number, units in enumerate(layers.stages):
        if number:
            features, stride = functional.max_pool2d(features, 2), 2 * stride
        for unit in units:
            features = _unit(features, unit, masks[stride]).relu_()
        if stride in STRIDES:
            levels.append(features)
    coarser = None
    outputs = []
    for level in reversed(range(len(STRIDES))):
        features, mask = levels[level], masks[STRIDES[level]]
        if coarser is not None:
            features = features + functional.interpolate(coarser, scale_factor=2.0, mode="nearest")
        coarser = _unit(features, layers.laterals[level], mask).relu_()
        outputs.append(_unit(coarser, layers.heads[level], mask))
    return outputs[::-1]


def _unit(features: Tensor, unit: _Unit, mask: Tensor | None) -> Tensor:
    features = functional.conv2d(features, *unit.point)
    if mask is not None:
        features *= mask
    return functional.conv2d(features, *unit.depth, padding=1, groups=len(unit.depth.weight))


def _faces(outputs: list[Tensor], masks: _Masks, threshold: float) -> Tensor:
    """The cells whose score reaches the threshold, (N, 16): number of the picture, box (x, y,
    width, height), five points, score. The arithmetic is that of cv2.FaceDetectorYN."""
    cells_BC, score_B, grids = [], [], []
    for stride, output in zip(STRIDES, outputs, strict=True):
        height, width = output.shape[2:]
        score = (output[:, 0].sigmoid() * output[:, 5].sigmoid()).sqrt()
        mask = masks[stride]
        if mask is not None:
            score = score.where(mask[:, 0] > 0, -1)
        score_B.append(score.flatten(1))
        cells_BC.append(output.permute(0, 2, 3, 1).flatten(1, 2))
        y = torch.arange(height, device=output.device).repeat_interleave(width)
        x = torch.arange(width, device=output.device).repeat(height)
        grids.append(torch.stack([x, y, torch.full_like(x, stride)], -1).float())
    scores = torch.cat(score_B, 1)
    picture_N, cell_N = (scores >= threshold).nonzero(as_tuple=True)
    values = torch.cat(cells_BC, 1)[picture_N, cell_N]
    grid_N3 = torch.cat(grids)[cell_N]
    grid, stride_N = grid_N3[:, :2], grid_N3[:, 2:]
    size = values[:, 3:5].exp() * stride_N
    corner = (grid + values[:, 1:3]) * stride_N - size / 2
    points = (values[:, 6:16] + grid.repeat(1, 5)) * stride_N
    score = scores[picture_N, cell_N, None]
    return torch.cat([picture_N[:, None].float(), corner, size, points, score], -1)


def _layers(path: str, device: torch.device, order: torch.memory_format) -> _Layers:
    """The network's layers from the ONNX file, in whose graph the convolutions have this order:
    stem, stages, laterals (coarsest first), then each kind of head for each level."""
    convolutions: Iterator[_Conv] = _convolutions(path, device, order)
    stem = next(convolutions)
    stages = []
    for count in _STAGES:
        stages.append([_Unit(next(convolutions), next(convolutions)) for _ in range(count)])
    laterals = [_Unit(next(convolutions), next(convolutions)) for _ in STRIDES]
    heads: list[list[_Unit]] = [[] for _ in STRIDES]
    for _ in _KINDS:
        for level in heads:
            level.append(_Unit(next(convolutions), next(convolutions)))
    return _Layers(stem, stages, laterals[::-1], list(map(_joined, heads)))


def _joined(units: list[_Unit]) -> _Unit:
    """Units with the same input as one, whose channels are theirs one after the other."""
    joined = []
    for convolutions in zip(*units, strict=True):
        joined.append(_Conv(*(torch.cat(tensors) for tensors in zip(*convolutions, strict=True))))
    return _Unit(*joined)


def _convolutions(path: str, device: torch.device, order: torch.memory_format) -> Iterator[_Conv]:
    for weight, bias in yunet_graph.convolutions(path):
        weights = torch.from_numpy(weight).to(device, memory_format=order)
        yield _Conv(weights, torch.from_numpy(bias).to(device))
