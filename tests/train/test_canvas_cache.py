"""Decoded faces that stay in memory: the batches are those of a worker that keeps none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ageray import config
from ageray.experiment import Experiment
from ageray.machine.memory import available_bytes
from ageray.synthetic import faces as synthetic_faces
from ageray.train import loader, plan
from ageray.train.batches import CachedBatches, CanvasCache
from ageray.train.sampler import Columns, OrderedBatches
from ageray.train.state import new_state

FACES, BATCH = 55, 8
CPU = torch.device("cpu")


def blocks(
    rows: range, size: int, broken: tuple[int, ...] = (), gone: tuple[int, ...] = ()
) -> Iterator[Columns]:
    for first in range(rows.start, rows.stop, size):
        some = np.array([row for row in range(first, min(first + size, rows.stop)) if row not in gone])
        yield {
            "row": some,
            "key": np.array([f"face-{row}" for row in some], object),
            "error": np.array(["no picture" if row in broken else "" for row in some], object),
            "age": some.astype(np.float32),
            "canvas": (some[:, None, None, None] * np.ones((1, 2, 2, 3))).astype(np.uint8),
        }


def equal(left: Columns, right: Columns) -> bool:
    return left.keys() == right.keys() and all(
        np.array_equal(np.asarray(left[name]), np.asarray(right[name])) for name in left
    )


@pytest.mark.parametrize(
    ("order", "broken", "gone"),
    [
        ([[5, 0, 5, 3], [1, 9, 2, 4]], (), ()),
        ([[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]], (1, 6, 7), ()),
        ([[0, 1], [2, 3], [4, 5], [6, 7]], (2, 3), (6,)),
        ([[0, 1], [2, 3]], (0, 1), ()),
        ([[0, 1], [2, 3]], (0, 1, 2, 3), ()),
    ],
)
def test_batches_out_of_a_cache_are_those_of_a_stream_with_and_without_reading(
    order: list[list[int]], broken: tuple[int, ...], gone: tuple[int, ...]
) -> None:
    rows, weight = np.array(order), {"weight": np.arange(12) / 2}
    needed = range(rows.max() + 1)
    plain = OrderedBatches([blocks(needed, 2, broken, gone)], rows, weight)
    wanted = list(plain)
    cache = CanvasCache(12, 0, CPU)
    for stream in ([blocks(needed, 2, broken, gone)], [iter(())]):  # the second epoch reads nothing
        cached = CachedBatches(stream, rows, cache, weight)
        batches = list(cached)
        assert len(batches) == len(wanted)
        assert all(equal(one, other) for one, other in zip(batches, wanted, strict=True))
        assert set(cached.skipped) == set(plain.skipped)
        assert len(cached.skipped) == len(set(cached.skipped))


def settings(shards: Path, *words: str) -> Experiment:
    return config.load(
        [],
        [
            f"data.shards={shards}",
            f"scale.runs={shards.parent / 'runs'}",
            "protocol={name: random, val: 0.2, test: 0}",
            "loss.neighborhood={}",
            "align.size=16",
            f"train.batch_size={BATCH}",
            "train.shuffle=16",
            "scale.decode_batch=8",
            *words,
        ],
    )


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cached") / "drawn"
    synthetic_faces.write_faces_table(folder, FACES, subjects=15, size=64, shards=3)
    return folder


@pytest.mark.parametrize(
    "word", ["train.shuffle_all=false", pytest.param("train.shuffle_all=true", marks=pytest.mark.slow)]
)
def test_an_epoch_after_the_first_decodes_nothing_and_is_equal(
    shards: Path, ray_local: None, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    epochs: dict[str, list[Columns]] = {}
    for cache_gib in ("0", "1"):
        experiment = settings(shards, word, f"scale.cache_gib={cache_gib}")
        planned = plan.make(experiment)
        state = new_state(experiment, CPU)
        state.start_stage(0, planned.steps[0])
        streams = loader.Streams(experiment, planned, loader.sources(experiment, planned))
        decoded, canvases = list[int](), streams._canvases

        def counted(folder: str, lookup: Any, canvases: Any = canvases, decoded: list[int] = decoded) -> Any:
            decoded.append(len(lookup.row))
            return canvases(folder, lookup)

        monkeypatch.setattr(streams, "_canvases", counted)
        counts, batches = list[int](), list[Columns]()
        for epoch in range(3):
            state.epoch = epoch
            batches += list(streams.training(state).batches)
            batches += list(streams.whole("val"))
            counts.append(sum(decoded))
            decoded.clear()
        epochs[cache_gib] = batches
        val, train = len(planned.faces["val"]), len(planned.faces["train"])
        if cache_gib == "1":
            # with shuffle_all the faces of a last, smaller batch are left to the next epoch
            assert counts[0] + counts[1] == train + val
            assert counts[2] == 0
            assert word.endswith("true") or counts[0] == train + val
        else:
            assert min(counts) >= train // BATCH * BATCH + val
    assert len(epochs["0"]) == len(epochs["1"])
    assert all(equal(one, other) for one, other in zip(epochs["0"], epochs["1"], strict=True))


def test_what_does_not_fit_is_not_cached(shards: Path, ray_local: None) -> None:
    experiment = settings(shards, "scale.cache_gib=0.0001")
    planned = plan.make(experiment)
    streams = loader.Streams(experiment, planned, loader.sources(experiment, planned))
    assert streams._cache("train", planned.faces["train"]) is None
    assert streams._cache("val", planned.faces["val"]) is not None


def test_memory_is_that_of_the_machine_or_of_the_container(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 900 kB\nMemAvailable:  700 kB\n")
    (tmp_path / "proc/self/cgroup").write_text("0::/pod\n")
    assert available_bytes(tmp_path) == 700 * 1024
    pod = tmp_path / "sys/fs/cgroup/pod"
    pod.mkdir(parents=True)
    (pod / "memory.max").write_text("max\n")
    (pod / "memory.current").write_text("1000\n")
    assert available_bytes(tmp_path) == 700 * 1024
    (pod / "memory.max").write_text("5000\n")
    assert available_bytes(tmp_path) == 4000
    old = tmp_path / "sys/fs/cgroup/memory"
    old.mkdir()
    (tmp_path / "proc/self/cgroup").write_text("4:cpuacct:/x\n7:memory:/x\n")
    (old / "memory.limit_in_bytes").write_text("9000\n")
    (old / "memory.usage_in_bytes").write_text("2000\n")
    assert available_bytes(tmp_path) == 7000
    assert available_bytes(tmp_path / "none") == 0
