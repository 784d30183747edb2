"""`Replay` on a CPU, where a recording is the same function on the same memory."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from ageray import bundle
from ageray.models.replay import Columns, Replay, recorded_size
from ageray.predictor import Predictor
from tests.test_predictor import canvases, make

CPU = torch.device("cpu")


def columns(count: int, seed: int = 0) -> Columns:
    draw = np.random.default_rng(seed)
    pixels = draw.integers(0, 256, (count, 3, 3), np.uint8)
    return {"pixels": pixels, "points": draw.random((count, 5), np.float32)}


def sums(batch: dict[str, Tensor]) -> Tensor:
    """(B, 6): a sum of a face's bytes, and its five numbers, halved."""
    return torch.cat([batch["pixels"].float().sum((1, 2))[:, None], batch["points"] / 2], 1)


def expected(batch: Columns) -> NDArray[np.float32]:
    first = batch["pixels"].astype(np.float32).sum((1, 2))[:, None]
    return np.concatenate([first, batch["points"] / 2], 1, dtype=np.float32)


class Counted:
    """A function that notes the sizes it was called with."""

    def __init__(self, function: Callable[[dict[str, Tensor]], Tensor] = sums) -> None:
        self.function, self.sizes, self.inputs = function, list[int](), list[dict[str, Tensor]]()

    def __call__(self, batch: dict[str, Tensor]) -> Tensor:
        self.sizes.append(len(batch["pixels"]))
        self.inputs.append({name: tensor.clone() for name, tensor in batch.items()})
        return self.function(batch)


def test_sizes() -> None:
    sizes = sorted({recorded_size(count) for count in range(1, 257)})
    assert sizes == [8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256]
    for count in range(1, 300):
        assert recorded_size(count) >= count
        if count >= 8:
            assert recorded_size(count) < 1.5 * count


def test_arrays_of_different_lengths_are_refused() -> None:
    """The rows that are missing are not made up from the first one."""
    batch = columns(5) | {"points": columns(3)["points"]}
    with pytest.raises(ValueError, match="differ in length"):
        Replay(sums, CPU)(batch)


def test_batches_of_any_size_give_what_the_function_gives() -> None:
    replay = Replay(sums, CPU)
    for seed, count in enumerate((9, 9, 9, 30, 12, 1, 30, 31, 1, 17, 9, 2)):
        batch = columns(count, seed)
        rows = replay(batch)
        assert rows.dtype == np.float32
        assert np.array_equal(rows, expected(batch)), count
    assert replay.sizes == [32, 12, 8]


def test_a_batch_is_padded_with_its_first_face() -> None:
    function = Counted()
    replay = Replay(function, CPU)
    batch = columns(9)
    replay(columns(12, seed=1))
    replay(batch)
    assert function.sizes[-1] == 12
    seen = function.inputs[-1]["points"].numpy()
    assert np.array_equal(seen[:9], batch["points"])
    assert np.array_equal(seen[9:], np.repeat(batch["points"][:1], 3, 0))


def test_the_second_batch_of_a_size_is_recorded() -> None:
    replay = Replay(sums, CPU)
    replay(columns(8))
    replay(columns(12))
    assert replay.sizes == []
    replay(columns(8))
    assert replay.sizes == [8]


def test_answers_outlive_the_next_batches() -> None:
    replay = Replay(sums, CPU)
    batches = [columns(8, seed) for seed in range(5)]
    rows = [replay(batch) for batch in batches]
    for batch, answer in zip(batches, rows, strict=True):
        assert np.array_equal(answer, expected(batch))


def test_the_least_recent_recordings_make_room() -> None:
    replay = Replay(sums, CPU, limit=2)
    for count in (8, 8, 12, 12, 8, 16, 16):
        assert np.array_equal(replay(columns(count)), expected(columns(count)))
    assert replay.sizes == [8, 16]
    replay(columns(12))  # it is as new
    assert replay.sizes == [16]


def test_faces_of_another_shape_are_another_recording() -> None:
    replay = Replay(lambda batch: batch["points"].sum((1, 2))[:, None], CPU)
    for shape in ((8, 5, 2), (8, 3, 2), (8, 5, 2), (8, 3, 2)):
        points = np.random.default_rng(0).random(shape, np.float32)
        assert replay({"points": points}) == pytest.approx(points.sum((1, 2))[:, None])
    assert replay.sizes == [8, 8]


def test_memory_that_may_not_be_written_is_taken() -> None:
    batch = columns(8)
    for values in batch.values():
        values.setflags(write=False)
    assert np.array_equal(Replay(sums, CPU)(batch), expected(batch))


def test_what_cannot_be_recorded_is_computed_and_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: Replay, recording: object) -> None:
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(Replay, "_record", fail)
    replay = Replay(sums, CPU)
    with caplog.at_level(logging.WARNING):
        for seed, count in enumerate((8, 8, 12, 12, 8)):
            batch = columns(count, seed)
            assert np.array_equal(replay(batch), expected(batch))
    assert [record.message for record in caplog.records] == [
        "CUDA graphs are not used: operation not permitted when stream is capturing"
    ]


def test_an_error_of_the_function_reaches_the_caller_and_the_next_batch_goes_on() -> None:
    def picky(batch: dict[str, Tensor]) -> Tensor:
        if float(batch["points"][0, 0]) < 0:
            raise ValueError("negative")
        return sums(batch)

    replay, bad = Replay(picky, CPU), columns(8)
    bad["points"] = -bad["points"]
    with pytest.raises(ValueError, match="negative"):
        replay(bad)
    assert np.array_equal(replay(columns(8)), expected(columns(8)))


def test_threads_get_their_own_answers() -> None:
    replay, wrong = Replay(sums, CPU), list[int]()

    def work(first: int) -> None:
        for seed in range(first, first + 200):
            batch = columns(5 + seed % 9, seed)
            if not np.array_equal(replay(batch), expected(batch)):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(first,)) for first in (0, 1000, 2000, 3000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_host_memory_is_kept_for_the_next_batch() -> None:
    replay = Replay(sums, CPU)
    for count in (8, 16, 9, 3):
        replay(columns(count))
    assert len(replay._spare) == 1


@pytest.mark.parametrize("name", ["baseline", "cluster_cnn"])
def test_a_predictor_gives_the_ages_of_the_padded_batch(name: str, tmp_path: Path) -> None:
    """Equal in every bit to the same batch without a recording."""
    predictor, faces = Predictor(bundle.load(make(tmp_path / "b", name=name)), "cpu", 1), canvases()
    assert predictor._replay is None
    padded = np.array([0, 1, 2, 3, 4, 5, 6, 0])
    plain = predictor.predict(faces.pixels[padded], faces.points[padded], faces.box[padded])
    predictor._replay = Replay(predictor._flat, CPU)
    for _ in range(3):
        ages = predictor.predict(faces.pixels, faces.points, faces.box)
        for column in ("age", "low", "high", "posterior", "decoded"):
            assert np.array_equal(getattr(ages, column), getattr(plain, column)[:7]), column
    assert predictor._replay.sizes == [8]
    assert predictor.predict(faces.pixels, faces.points, faces.box, details=True).embedding is not None
