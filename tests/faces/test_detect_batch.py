"""YuNet in torch, for batches of photos: the rows of ONNX Runtime, and the faces that the detector
finds in each photo alone."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ageray.experiment import Detect
from ageray.faces import yunet, yunet_graph, yunet_torch
from ageray.faces.detect import YuNet, picture_of
from ageray.faces.detect_batch import BatchYuNet
from ageray.faces.images import Photo
from ageray.faces.yunet_torch import TorchNetwork
from ageray.synthetic import faces as synthetic_faces

pytest.importorskip("onnxruntime")

Pixels = NDArray[np.uint8]
CPU = torch.device("cpu")
SIZES = [(640, 480), (333, 500), (64, 70), (480, 640), (640, 97), (416, 512), (640, 640), (97, 640)]
FEW = 0.02  # a threshold at which a face has dozens of rows, before overlapping ones are left out


def pictures(sizes: list[tuple[int, int]]) -> list[Pixels]:
    return [synthetic_faces.draw_photo(seed, *size).pixels for seed, size in enumerate(sizes)]


def same(ours: list[NDArray[np.float32]], theirs: list[NDArray[np.float32]]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one[:, :14], other[:, :14], rtol=0, atol=1e-3)
        np.testing.assert_allclose(one[:, 14], other[:, 14], rtol=0, atol=1e-5)


def in_one_pass(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(yunet_torch, "_MOST_PADDING", 100.0)
    patch.setitem(yunet_torch._MOST_PIXELS, "cpu", 2**30)


@pytest.mark.parametrize("threshold", [0.6, FEW])
def test_rows_are_those_of_onnxruntime(threshold: float) -> None:
    batch = pictures(SIZES)
    onnx = yunet.OnnxNetwork(yunet.weights_path(), threshold)
    theirs = [onnx.rows(picture) for picture in batch]
    assert sum(map(len, theirs)) >= 12
    same(TorchNetwork(threshold, CPU).rows(batch), theirs)


def test_a_padded_picture_has_the_rows_that_it_has_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """All sizes in one forward pass: nothing beyond a picture's edge may be seen from inside."""
    in_one_pass(monkeypatch)
    batch, net = pictures([(333, 500), (64, 70), (640, 97), (97, 320)]), TorchNetwork(FEW, CPU)
    assert len(list(yunet_torch._groups([picture.shape[:2] for picture in batch], 2**30))) == 1
    white = np.full((512, 640, 3), 255, np.uint8)
    net.rows([white] * len(batch))  # the buffer is used again, and must not show through
    together = net.rows(batch)
    alone = [net.rows([picture])[0] for picture in batch]
    assert sum(map(len, alone)) >= 5
    same(together, alone)


def test_no_pictures_and_no_faces() -> None:
    net = TorchNetwork(0.6, CPU)
    assert net.rows([]) == []
    [rows] = net.rows([np.zeros((64, 64, 3), np.uint8)])
    assert rows.shape == (0, 15)


def test_a_threshold_of_zero_takes_no_cell_beyond_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    in_one_pass(monkeypatch)
    cells = TorchNetwork(0.0, CPU)._cells(pictures([(64, 64), (128, 96)]))
    counts = [int((cells[:, 0] == place).sum()) for place in (0, 1)]
    assert counts == [8 * 8 + 4 * 4 + 2 * 2, 12 * 16 + 6 * 8 + 3 * 4]


def test_forward_passes_have_little_padding_and_fit_into_memory() -> None:
    sides = [(640, 480), (480, 640), (640, 448), (96, 64), (448, 640), (640, 640), (64, 96)] * 40
    groups = list(yunet_torch._groups(sides, 32 * 2**20))
    assert sorted(number for group in groups for number in group) == list(range(len(sides)))
    for group in groups:
        heights, widths = zip(*(sides[number] for number in group), strict=True)
        area = max(heights) * max(widths) * len(group)
        assert area <= 32 * 2**20
        assert area <= 1.25 * sum(height * width for height, width in zip(heights, widths, strict=True))
    assert len(groups) <= 6
    assert len(list(yunet_torch._groups([(640, 640)] * 200, 32 * 2**20))) == 3


def test_the_weights_are_all_of_the_files_convolutions() -> None:
    shapes = [weight.shape for weight, _ in yunet_graph.convolutions(yunet.weights_path())]
    assert len(shapes) == 53
    assert shapes[0] == (16, 3, 3, 3)
    for point, depth in pairwise(shapes[1:]):
        if point[2] == 1:
            assert depth == (point[0], 1, 3, 3)


# --- the detector ---------------------------------------------------------------------------------


def of(pixels: Pixels) -> Photo:
    return Photo(np.ascontiguousarray(pixels), 1, pixels.shape[1], pixels.shape[0])


def photos_of_all_kinds() -> list[Photo]:
    """Ordinary, turned, filled by a face, with a large face, large, of a few pixels, of nobody."""
    upright = synthetic_faces.draw_face(4, 30, size=360).pixels
    portrait = synthetic_faces.draw_face(1, 40, size=512, roll=0.0, yaw=0.0)
    (x0, y0), (x1, y1) = portrait.points.min(0).astype(int), portrait.points.max(0).astype(int)
    large = synthetic_faces.draw_face(4, 30, size=640).pixels[100:560, 90:550]
    return [
        of(upright),
        *(of(np.rot90(upright, turns)) for turns in (1, 2, 3)),
        of(portrait.pixels[y0:y1, x0:x1]),
        of(np.asarray(cv2.resize(large, (900, 900), interpolation=cv2.INTER_LINEAR), np.uint8)),
        Photo(synthetic_faces.draw_photo(1, 1280, 960).pixels, 2, 2559, 1919, (1, 0)),
        of(np.random.default_rng(0).integers(0, 256, (5, 320, 3), np.uint8)),
        of(np.zeros((300, 200, 3), np.uint8)),
    ]


def test_a_batch_has_the_faces_of_each_photo_alone() -> None:
    photos, settings = photos_of_all_kinds(), Detect()
    alone = YuNet(settings)
    batch = BatchYuNet(settings, CPU).detect([picture_of(photo, settings) for photo in photos])
    counts = []
    for photo, faces in zip(photos, batch, strict=True):
        theirs = alone.detect(photo)
        counts.append(len(faces))
        assert len(faces) == len(theirs)
        for face, other in zip(faces, theirs, strict=True):
            np.testing.assert_allclose(face.points, other.points, rtol=0, atol=4e-3)
            np.testing.assert_allclose(face.box, other.box, rtol=0, atol=4e-3)
            assert face.score == pytest.approx(other.score, abs=1e-5)
    assert counts == [1, 1, 1, 1, 1, 1, 3, 0, 0]


def test_the_looks_of_a_round_are_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks one after the other would leave a device idle, and cost a start each."""
    photos, settings = photos_of_all_kinds(), Detect()
    alone, looks = YuNet(settings), []
    run = alone._run
    for photo in photos:
        number = len(looks)
        monkeypatch.setattr(alone, "_run", lambda bgr: looks.append(bgr.shape) or run(bgr))
        alone.detect(photo)
        assert len(looks) > number
    many, rounds = BatchYuNet(settings, CPU), []
    rows = many._net.rows
    monkeypatch.setattr(many._net, "rows", lambda pictures: rounds.append(len(pictures)) or rows(pictures))
    many.detect([picture_of(photo, settings) for photo in photos])
    assert rounds[0] == len(photos)
    assert sum(rounds) == len(looks)
    assert len(rounds) <= 8
    assert rounds == sorted(rounds, reverse=True)


def test_no_tf32_on_a_gpu() -> None:
    """torch lets cuDNN round to TF32. The detector's convolutions do not; all others keep it."""
    before = torch.backends.cudnn.allow_tf32
    with yunet_torch._float32(torch.device("cuda")):
        assert not torch.backends.cudnn.allow_tf32
        assert torch.backends.cudnn.enabled
    assert torch.backends.cudnn.allow_tf32 == before
