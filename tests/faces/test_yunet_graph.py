"""The detector's ONNX file with joined heads: the numbers of the file as it is shipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from ageray.faces import yunet, yunet_graph


@pytest.fixture(scope="module")
def shipped() -> bytes:
    return Path(yunet.weights_path()).read_bytes()


def _session(content: bytes) -> Any:
    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])


def test_columns_are_the_outputs_of_the_four_heads(shipped: bytes) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, 640, 640), np.uint8)
    rewritten = _session(yunet_graph.joined(shipped))
    cells = rewritten.run(yunet_graph.OUTPUTS, {yunet_graph.INPUT: pixels})
    names = [f"{kind}_{stride}" for stride in (8, 16, 32) for kind in ("cls", "obj", "bbox", "kps")]
    outputs = _session(shipped).run(names, {"input": pixels.astype(np.float32)})
    for level, output in enumerate(cells):
        assert output.shape == (1, (80, 40, 20)[level] ** 2, yunet_graph.COLUMNS)
        classes, objects, boxes, points = outputs[4 * level : 4 * level + 4]
        scores = 1 / (1 + np.exp(-output[..., :2]))
        np.testing.assert_allclose(scores, np.concatenate([classes, objects], -1), atol=1e-6)
        np.testing.assert_allclose(output[..., 2:6], boxes, atol=1e-5)
        np.testing.assert_allclose(output[..., 6:], points, atol=1e-5)


def test_each_level_has_one_head(shipped: bytes) -> None:
    model = onnx.load_from_string(yunet_graph.joined(shipped))
    onnx.checker.check_model(model, full_check=True)
    of_heads = []
    for node in model.graph.node:
        if any(name.startswith("bbox_head.") for name in node.input):
            of_heads.append(node.op_type)
    assert of_heads == ["Conv", "Conv"] * 3  # 24 in the shipped file
    tensors = {tensor.name for tensor in model.graph.initializer}
    used = {name for node in model.graph.node for name in node.input}
    assert tensors <= used  # ONNX Runtime would warn of others


@pytest.mark.parametrize(("height", "width"), [(64, 96), (352, 32)])
def test_any_size_goes_in(shipped: bytes, height: int, width: int) -> None:
    pixels = np.zeros((1, 3, height, width), np.uint8)
    cells = _session(yunet_graph.joined(shipped)).run(yunet_graph.OUTPUTS, {yunet_graph.INPUT: pixels})
    for stride, output in zip((8, 16, 32), cells, strict=True):
        assert output.shape == (1, height * width // stride**2, yunet_graph.COLUMNS)
