"""YuNet's ONNX file: its weights, and the same network rewritten so that ONNX Runtime does less
work for the same numbers.

- The pictures may have any size instead of 640 x 640.
- The four heads of a level (class, object, box, points) read the same features. They become one
  head of 16 channels. ONNX Runtime computes convolutions in blocks of 16 channels, so the heads of
  1, 1, 4 and 10 channels cost as much as four of 16.
- The pixels go in as bytes. The sigmoid of class and object is left to the caller.

The file is a protobuf message. The few fields that occur are read and written here, because the
package `onnx` may be missing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float32]

INPUT = "bytes"
"""The pixels: uint8 (1, 3, H, W), BGR, sides multiples of 32."""
OUTPUTS = ("kps_8", "kps_16", "kps_32")
"""A level's cells, row by row: float32 (1, cells, COLUMNS)."""
COLUMNS = 16
"""Of a cell: logits of class and object, box (4), points (10)."""

_HEADS = (b"cls", b"obj", b"bbox", b"kps")  # in the order of the columns
# The head of the points keeps its nodes and gets the weights of all. The nodes of the others go.
_HEAD, _JOINED = b"bbox_head.multi_level_", b"bbox_head.multi_level_kps"

# Fields of ONNX's messages (onnx.proto).
_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_TENSOR, _GRAPH_INPUT, _GRAPH_OUTPUT, _GRAPH_VALUE_INFO = 1, 5, 11, 12, 13
_NODE_INPUT, _NODE_OUTPUT, _NODE_OPERATOR, _NODE_ATTRIBUTE, _VALUE_NAME = 1, 2, 4, 5, 1
_TENSOR_SIDE, _TENSOR_NAME, _TENSOR_BYTES = 1, 8, 9
# A dimension is a number (field 1) or a name (field 2), three bytes either way: 640 of the input,
# 6400, 1600 and 400 cells of the outputs.
_SIDE, _COUNTS, _NAME = b"\x08\x80\x05", (b"\x08\x80\x32", b"\x08\xc0\x0c", b"\x08\x90\x03"), b"\x12\x01n"
_FLOAT, _UINT8 = b"\x0a\x16\x08\x01", b"\x0a\x16\x08\x02"  # type of the input's elements
_TO_FLOAT = b"\x0a\x02to\x18\x01\xa0\x01\x02"  # attribute of the operator Cast
# Where the 10 channels of the points stand: first dimension of a weight or bias, last one of an
# output, its shape, groups of a convolution.
_POINTS, _ALL = b"\x08\x0a", b"\x08\x10"
_SHAPE, _POINTS_SHAPE, _ALL_SHAPE = b"395", b"\x0a" + bytes(7), b"\x10" + bytes(7)
_POINTS_GROUPS, _ALL_GROUPS = b"group\x18\x0a", b"group\x18\x10"


def joined(model: bytes) -> bytes:
    """The ONNX file of YuNet 2023mar with INPUT and OUTPUTS, for pictures of any size."""
    parts = []
    for number, part, content in fields(model):
        if number == _MODEL_GRAPH:
            part = _field(number, b"".join(_joined_graph(content)))
        parts.append(part)
    return b"".join(parts)


def convolutions(path: str) -> list[tuple[Values, Values]]:
    """Weight (out, in, height, width) and bias (out,) of each convolution of the ONNX file, in the
    order of its graph."""
    inputs: list[list[bytes]] = []
    tensors: dict[bytes, Values] = {}
    for number, _, graph in fields(Path(path).read_bytes()):
        if number != _MODEL_GRAPH:
            continue
        for kind, _, content in fields(graph):
            if kind == _GRAPH_NODE and b"Conv" in values(content, _NODE_OPERATOR):
                inputs.append(values(content, _NODE_INPUT))
            if kind == _GRAPH_TENSOR:
                [name] = values(content, _TENSOR_NAME)
                tensors[name] = _tensor(content)
    return [(tensors[weight], tensors[bias]) for _, weight, bias in inputs]


def _tensor(message: bytes) -> Values:
    """The tensor of a message, if it is of float32; others are not asked for."""
    sides = []
    for number, part, _ in fields(message):
        if number == _TENSOR_SIDE:
            sides.append(_read_varint(part, 1)[0])
    [content] = values(message, _TENSOR_BYTES)
    numbers = np.frombuffer(content, np.float32)
    if numbers.size != math.prod(sides):
        return numbers
    return numbers.reshape(sides).copy()


def _joined_graph(graph: bytes) -> Iterator[bytes]:
    tensors: dict[bytes, bytes] = {}
    for number, _, content in fields(graph):
        if number == _GRAPH_TENSOR:
            tensors[values(content, _TENSOR_NAME)[0]] = content
    cast = [(_NODE_INPUT, INPUT.encode()), (_NODE_OUTPUT, b"input")]
    cast += [(_NODE_OPERATOR, b"Cast"), (_NODE_ATTRIBUTE, _TO_FLOAT)]
    yield _field(_GRAPH_NODE, b"".join(_field(*each) for each in cast))
    dropped = {name for name in tensors if name.startswith(_HEAD) and not name.startswith(_JOINED)}
    used = set[bytes]()
    for number, part, content in fields(graph):
        if number == _GRAPH_NODE:
            if dropped.isdisjoint(values(content, _NODE_INPUT)):
                used.update(values(content, _NODE_INPUT))
                yield _field(number, content.replace(_POINTS_GROUPS, _ALL_GROUPS))
            else:
                dropped.update(values(content, _NODE_OUTPUT))
        elif number == _GRAPH_INPUT:
            content = content.replace(b"\x0a\x05input", b"\x0a\x05" + INPUT.encode())
            yield _field(number, content.replace(_FLOAT, _UINT8).replace(_SIDE, _NAME))
        elif number == _GRAPH_OUTPUT:
            if values(content, _VALUE_NAME)[0].decode() in OUTPUTS:
                for count in _COUNTS:
                    content = content.replace(count, _NAME)
                yield _field(number, content.replace(_POINTS, _ALL))
        elif number != _GRAPH_TENSOR and number != _GRAPH_VALUE_INFO:
            yield part
    for name, content in tensors.items():
        if name in used:
            yield _field(_GRAPH_TENSOR, b"".join(_joined_tensor(name, content, tensors)))


def _joined_tensor(name: bytes, tensor: bytes, tensors: dict[bytes, bytes]) -> Iterator[bytes]:
    """The fields of a tensor; one of the points' head gets the rows of the other heads before its
    own.
    """
    for place, (number, part, content) in enumerate(fields(tensor)):
        if name == _SHAPE and number == _TENSOR_BYTES:
            part = _field(number, content.replace(_POINTS_SHAPE, _ALL_SHAPE))
        elif name.startswith(_JOINED) and place == 0:
            assert part == _POINTS
            part = _ALL
        elif name.startswith(_JOINED) and number == _TENSOR_BYTES:
            rows = []
            for head in _HEADS:
                rows += values(tensors[name.replace(_JOINED, _HEAD + head)], _TENSOR_BYTES)
            part = _field(number, b"".join(rows))
        yield part


def values(message: bytes, number: int) -> list[bytes]:
    """The contents of all fields of this number."""
    return [content for own, _, content in fields(message) if own == number]


def fields(message: bytes) -> Iterator[tuple[int, bytes, bytes]]:
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


def _field(number: int, content: bytes) -> bytes:
    """A field of bytes; number: below 16."""
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


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
