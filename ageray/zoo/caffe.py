"""The original GoogLeNet's published ImageNet weights as a file for `model.weights`.

    python -m ageray.zoo.caffe bvlc_googlenet.caffemodel googlenet.safetensors

Takes BVLC's `.caffemodel`, or an `.npz` of a package that carries the same layers; needs neither
Caffe nor protobuf. Layer names become those of `ageray.models.googlenet`.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from ageray import storage
from ageray.errors import UserError
from ageray.models.googlenet import GoogLeNet

# Field numbers of caffe.proto. A layer is stored in the present form or in that of before 2015.
_LAYER, _LAYER_BEFORE = 100, 2
_NAME, _NAME_BEFORE = 1, 4
_BLOBS, _BLOBS_BEFORE = 7, 6
_SHAPE, _DIMENSION, _DATA = 7, 1, 5
_SIDES_BEFORE = (1, 2, 3, 4)  # num, channels, height, width

Array = NDArray[np.float32]


def main(words: Sequence[str]) -> None:
    """Converts a file. Raises UserError if it has not the layers of GoogLeNet."""
    parser = argparse.ArgumentParser(prog="python -m ageray.zoo.caffe", description=__doc__)
    parser.add_argument("source", help="bvlc_googlenet.caffemodel, or an .npz with the same layers")
    parser.add_argument("file", help="the safetensors file to write")
    arguments = parser.parse_args(words)
    state = convert(storage.read_bytes(arguments.source), arguments.source)
    storage.write_bytes(arguments.file, save(state))
    print(f"written to {arguments.file}: {len(state)} tensors; name it as model.weights")


def convert(content: bytes, name: str) -> dict[str, Tensor]:
    """The tensors of GoogLeNet's convolutions by `<layer>.weight` and `<layer>.bias`, BGR input.

    Classifiers, also the auxiliary ones, are left out. Raises UserError if a layer is missing, has
    another shape, or the file is of neither kind.
    """
    try:
        arrays = _npz(content) if content.startswith(b"PK") else dict(_caffemodel(content))
    except (ValueError, IndexError, OSError) as error:
        raise UserError(f"{name}: neither a .caffemodel nor an .npz ({error}); give another file") from None
    state = {}
    for key, expected in GoogLeNet().state_dict().items():
        layer = key.removeprefix("layers.")
        array = arrays.get(layer)
        if array is None:
            raise UserError(f"{name}: has no {layer}; it is not the original GoogLeNet, so give another file")
        tensor = torch.from_numpy(_oriented(array, tuple(expected.shape)))
        if tensor.shape != expected.shape:
            raise UserError(
                f"{name}: {layer} has the shape {list(tensor.shape)}, not {list(expected.shape)}; "
                "it is not the original GoogLeNet, so give another file"
            )
        state[layer] = tensor
    return state


def _oriented(array: Array, shape: tuple[int, ...]) -> Array:
    """The array in Caffe's order of dimensions (O, I, H, W), of which TensorFlow's is (H, W, I, O).

    A bias may have leading dimensions of 1.
    """
    if array.ndim == 4 and len(shape) == 4 and array.shape != shape:
        array = array.transpose(3, 2, 0, 1)
    if len(shape) == 1 and array.size == shape[0]:
        array = array.reshape(shape)
    return np.ascontiguousarray(array, np.float32)


def _layer_name(name: str) -> str:
    return name.replace("/", "_")


# --- an .npz --------------------------------------------------------------------------------------


def _npz(content: bytes) -> dict[str, Array]:
    """Arrays by layer. Their names end in weight, weights or W, and bias, biases or b."""
    arrays = {}
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        for name in file.files:
            match = re.fullmatch(r"(.+)[/._](weights?|W|bias|biases|b)", name)
            if match is not None:
                kind = "weight" if match[2].lower().startswith("w") else "bias"
                arrays[f"{_layer_name(match[1])}.{kind}"] = np.asarray(file[name], np.float32)
    return arrays


# --- a .caffemodel --------------------------------------------------------------------------------


def _caffemodel(content: bytes) -> Iterator[tuple[str, Array]]:
    """The blobs of every layer, the first as its weight and the second as its bias."""
    for field, value in _fields(content):
        if field not in (_LAYER, _LAYER_BEFORE) or isinstance(value, int):
            continue
        before = field == _LAYER_BEFORE
        name, blobs = "", list[Array]()
        for inner, part in _fields(value):
            if inner == (_NAME_BEFORE if before else _NAME) and not isinstance(part, int):
                name = _layer_name(bytes(part).decode("utf-8", "replace"))
            elif inner == (_BLOBS_BEFORE if before else _BLOBS) and not isinstance(part, int):
                blobs.append(_blob(part))
        yield from zip((f"{name}.weight", f"{name}.bias"), blobs, strict=False)


def _blob(content: memoryview) -> Array:
    """A BlobProto: its shape and its float data."""
    shape, sides, data = list[int](), list[int](), list[Array]()
    for field, value in _fields(content):
        if field == _SHAPE and not isinstance(value, int):
            for inner, part in _fields(value):
                if inner == _DIMENSION:
                    shape += _numbers(part)
        elif field in _SIDES_BEFORE and isinstance(value, int):
            sides.append(value)
        elif field == _DATA and not isinstance(value, int):
            data.append(np.frombuffer(value, "<f4"))
    values = np.concatenate(data) if data else np.zeros(0, np.float32)
    return values.reshape(shape or sides)


def _numbers(value: int | memoryview) -> list[int]:
    """One number, or several packed ones."""
    if isinstance(value, int):
        return [value]
    numbers, place = [], 0
    while place < len(value):
        number, place = _varint(value, place)
        numbers.append(number)
    return numbers


def _fields(content: Any) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of a protobuf message: their numbers, and a number or the bytes of each.

    Raises ValueError if it is no such message.
    """
    view, place = memoryview(content), 0
    while place < len(view):
        key, place = _varint(view, place)
        field, kind = key >> 3, key & 7
        if kind == 0:
            number, place = _varint(view, place)
            yield field, number
            continue
        size = {1: 8, 5: 4}.get(kind)
        if kind == 2:
            size, place = _varint(view, place)
        if size is None or field == 0 or place + size > len(view):
            raise ValueError(f"byte {place} is not protobuf")
        yield field, view[place : place + size]
        place += size


def _varint(view: memoryview, place: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        if place >= len(view):
            raise ValueError("the file ends within a number")
        byte = view[place]
        place += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, place
    raise ValueError(f"byte {place} is not protobuf")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
