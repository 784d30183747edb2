"""Caffe's GoogLeNet as a start: files written here by hand, in both forms of caffe.proto."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ageray.errors import UserError
from ageray.experiment.model import ClusterCnn as Config
from ageray.models.build import build
from ageray.models.googlenet import GoogLeNet
from ageray.zoo import caffe


def varint(number: int) -> bytes:
    content = b""
    while True:
        number, low = number >> 7, number & 127
        content += bytes([low | (128 if number else 0)])
        if not number:
            return content


def message(field: int, content: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(content)) + content


def blob(values: NDArray[np.float32], before: bool) -> bytes:
    if before:
        sides = [1] * (4 - values.ndim) + list(values.shape)
        shape = b"".join(varint(n << 3) + varint(side) for n, side in enumerate(sides, 1))
    else:
        shape = message(7, message(1, b"".join(map(varint, values.shape))))
    return shape + message(5, values.astype("<f4").tobytes())


def caffemodel(layers: dict[str, list[NDArray[np.float32]]], before: bool) -> bytes:
    """A net named 'net' with a number, a fixed-size field and the layers."""
    content = message(1, b"net") + varint(9 << 3) + varint(300) + varint(10 << 3 | 5) + struct.pack("<f", 1.5)
    for name, blobs in layers.items():
        layer = message(4 if before else 1, name.encode())
        for values in blobs:
            layer += message(6 if before else 7, blob(values, before))
        content += message(2 if before else 100, layer)
    return content


@pytest.fixture(scope="module")
def layers() -> dict[str, list[NDArray[np.float32]]]:
    """GoogLeNet's own random layers under Caffe's names, with classifiers and a layer without
    blobs."""
    named: dict[str, list[NDArray[np.float32]]] = {"data": []}
    for name, module in GoogLeNet().layers.items():
        caffe_name = name.replace("inception_3a_", "inception_3a/").replace("conv1_", "conv1/")
        assert isinstance(module, torch.nn.Conv2d)
        assert module.bias is not None
        named[caffe_name] = [module.weight.detach().numpy(), module.bias.detach().numpy()]
    named["loss1/classifier"] = [np.ones((3, 4), np.float32), np.ones(3, np.float32)]
    return named


@pytest.mark.parametrize("before", [False, True])
def test_a_caffemodel_becomes_a_start(
    layers: dict[str, list[NDArray[np.float32]]], before: bool, tmp_path: Path
) -> None:
    source, file = tmp_path / "bvlc.caffemodel", tmp_path / "googlenet.safetensors"
    source.write_bytes(caffemodel(layers, before))
    caffe.main([str(source), str(file)])
    network = build(Config(name="cluster_cnn", weights=str(file)))
    state = network.get_backbone().state_dict()
    ours = state["layers.inception_3a_5x5.weight"].numpy()
    np.testing.assert_array_equal(ours, layers["inception_3a/5x5"][0])
    first = state["layers.conv1_7x7_s2.weight"].flip(1).numpy()  # BGR in the file
    np.testing.assert_array_equal(first, layers["conv1/7x7_s2"][0])


def test_a_packages_arrays_may_have_tensorflows_order(layers: dict[str, list[NDArray[np.float32]]]) -> None:
    arrays = {}
    for name, blobs in layers.items():
        for values, kind in zip(blobs, ("weights", "biases"), strict=False):
            arrays[f"{name}/{kind}"] = values.transpose(2, 3, 1, 0) if values.ndim == 4 else values
    content = io.BytesIO()
    np.savez(content, **arrays)
    state = caffe.convert(content.getvalue(), "googlenet.npz")
    np.testing.assert_array_equal(state["conv2_3x3.weight"].numpy(), layers["conv2_3x3"][0])


def test_files_of_another_kind_are_refused(
    layers: dict[str, list[NDArray[np.float32]]], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"photo\.jpg: neither a \.caffemodel nor an \.npz"):
        caffe.convert(b"\xff\xd8\xff\xe0 no weights", "photo.jpg")
    fewer = {name: blobs for name, blobs in layers.items() if name != "inception_5b_1x1"}
    with pytest.raises(UserError, match=r"has no inception_5b_1x1\.weight"):
        caffe.convert(caffemodel(fewer, False), "half.caffemodel")
    other = {**layers, "inception_5b_1x1": [np.zeros((1, 2, 1, 1), np.float32), np.zeros(1, np.float32)]}
    with pytest.raises(UserError, match=r"inception_5b_1x1\.weight has the shape"):
        caffe.convert(caffemodel(other, False), "other.caffemodel")
