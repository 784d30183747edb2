"""The sampler, batches out of a stream, prefetching, checkpoints and learning curves. No Ray."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ageray.data.row_index import RowIndex
from ageray.errors import UserError
from ageray.train import checkpoint, curves, sampler
from ageray.train.batches import Prefetcher
from ageray.train.checkpoint import AsyncCheckpointer
from ageray.train.sampler import Columns, OrderedBatches

CPU = torch.device("cpu")


def row_index(ages: list[float]) -> RowIndex:
    return RowIndex.of([f"face-{number}" for number in range(len(ages))], ages)


# --- the order ----------------------------------------------------------------------------------


def test_an_epoch_shows_every_face_once_near_its_place() -> None:
    faces = row_index([30.0] * 1000)
    first, again, other = (sampler.shuffled(faces, 50, (7, epoch)) for epoch in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert sorted(first) == list(range(1000))
    assert 20 < np.abs(first - np.arange(1000)).max() <= 50
    assert np.abs(first - np.arange(1000)).mean() > 10


def test_without_a_window_any_two_faces_may_meet() -> None:
    faces = row_index([30.0] * 4000)
    rows = sampler.shuffled(faces, None, (7, 0))
    assert sorted(rows) == list(range(4000))
    assert abs(np.corrcoef(rows, np.arange(4000))[0, 1]) < 0.1


@pytest.mark.parametrize("window", [None, 16])
def test_years_are_filled_up_and_thinned_out_to_a_count(window: int | None) -> None:
    """The rule of the neighborhood paper's section 5.1 with 10 faces a year instead of 5,000."""
    ages = [5.0] * 4 + [30.0] * 25 + [70.0] * 12 + [20.0] * 10 + [61.0] * 11
    faces = row_index(ages)
    rows = sampler.shuffled(faces, window, (0, 0), counts=(10, (20, 60)))
    assert Counter(faces.age[rows].tolist()) == {5.0: 10, 30.0: 10, 70.0: 12, 20.0: 10, 61.0: 11}
    repeats = Counter(rows.tolist())
    assert sorted(repeats[row] for row in range(4)) == [2, 2, 3, 3]
    assert max(repeats[row] for row in range(4, len(ages))) == 1
    assert len(rows) == sampler.epoch_faces(faces.age, 10, (20, 60))
    other = sampler.shuffled(faces, window, (0, 1), counts=(10, (20, 60)))
    assert set(rows.tolist()) != set(other.tolist())  # thinned out anew each epoch


@pytest.mark.parametrize("world", [1, 2, 4])
def test_workers_share_every_batch_and_lose_no_face(world: int) -> None:
    rows = sampler.shuffled(row_index([1.0] * 103), 16, (0,))
    parts = [sampler.share(rows, 8, rank, world) for rank in range(world)]
    whole = np.concatenate(parts, 1)
    assert np.array_equal(whole.reshape(-1), rows[:96])
    assert np.array_equal(sampler.share(rows, 8, world - 1, world, first=5), parts[-1][5:])


def test_faces_are_found_by_key() -> None:
    faces = row_index([1.0] * 20)
    lookup = faces.lookup(np.array([7, 3, 7]))
    assert lookup.find(["face-3", "face-4", "face-7", "nobody"]).tolist() == [3, -1, 7, -1]
    assert faces.lookup(np.zeros(0, np.int64)).find(["face-3"]).tolist() == [-1]
    assert faces.lookup().find(["face-19", "face-0"]).tolist() == [19, 0]


def test_ages_count_alike_as_far_as_ten_times_the_mean() -> None:
    ages = np.array([20.0] * 600 + [21.2] * 300 + [20.9] * 90 + [80.0] * 9 + [90.0], np.float32)
    weights = sampler.weights(ages)
    assert weights.mean() == pytest.approx(1)
    assert weights.max() == pytest.approx(10)
    year = np.floor(ages + 0.5)
    sums = {age: weights[year == age].sum() for age in (20, 21)}
    assert sums[20] == pytest.approx(sums[21])
    assert weights[year == 80] == pytest.approx(10)
    for start in (0.0, 0.37, 0.99):
        rows = sampler.resampled(weights, start)
        assert len(rows) == len(ages)
        times = np.bincount(rows, minlength=len(ages))
        assert (np.abs(times - weights) < 1).all()
    seen = sampler.shuffled(
        RowIndex.of([str(k) for k in range(1000)], ages.tolist()), 100, (1,), resample=True
    )
    assert Counter(year[seen].tolist())[90.0] == 10


def test_the_start_says_which_faces_are_rounded_up() -> None:
    """Weights of 0.75, 0.75 and 1.5: two faces of 20 years and one of 30."""
    ages = np.array([20.0, 20.0, 30.0], np.float32)
    weights = sampler.weights(ages)
    assert sampler.resampled(weights, 0.0).tolist() == [1, 2, 2]
    assert sampler.resampled(weights, 0.3).tolist() == [0, 2, 2]
    assert sampler.resampled(weights, 0.6).tolist() == [0, 1, 2]
    index = RowIndex.of([str(number) for number in range(300)], np.tile(ages, 100).tolist())
    epochs = set()
    for epoch in range(8):
        epochs.add(tuple(sorted(sampler.shuffled(index, 20, (0, epoch), resample=True))))
    assert len(epochs) == 3  # one for each of the starts above


def test_faces_that_are_alike_in_age_are_not_changed() -> None:
    assert sampler.weights(np.array([5.0, 6.0, 7.0], np.float32)) == pytest.approx(np.ones(3))
    assert sampler.resampled(np.ones(2), 0.5).tolist() == [0, 1]


def test_ages_can_be_evened_out_in_part() -> None:
    ages = np.array([20.0] * 160 + [60.0] * 10, np.float32)
    found = sampler.weights(ages, 0.25)
    assert found.mean() == pytest.approx(1)
    assert found[-1] / found[0] == pytest.approx(2)


def test_sets_come_by_their_weights_spread_over_the_epoch_and_again_alike() -> None:
    keys, ages = [str(number) for number in range(1100)], [30.0] * 1100
    sets = RowIndex.of(keys, ages, starts=(0, 1000))
    assert sets.set_of(np.array([0, 999, 1000, 1099])).tolist() == [0, 0, 1, 1]
    rows = sampler.shuffled(sets, 64, (3, 0), shares=(0.5, 2.0))
    assert np.array_equal(rows, sampler.shuffled(sets, 64, (3, 0), shares=(0.5, 2.0)))
    assert not np.array_equal(rows, sampler.shuffled(sets, 64, (3, 1), shares=(0.5, 2.0)))
    times = np.bincount(rows, minlength=1100)
    assert times[:1000].sum() == 500
    assert (times[1000:] == 2).all()
    for part in rows.reshape(7, 100):
        assert 20 <= (part >= 1000).sum() <= 37
    small = rows[rows >= 1000]
    # a face moves by at most the window among those of its set
    assert (np.abs(small - np.repeat(np.arange(1000, 1100), 2)) <= 64).all()


# --- batches out of a stream --------------------------------------------------------------------


def blocks(
    count: int, size: int, broken: tuple[int, ...] = (), gone: tuple[int, ...] = ()
) -> Iterator[Columns]:
    for first in range(0, count, size):
        rows = np.array([row for row in range(first, min(first + size, count)) if row not in gone], np.int64)
        errors = np.array(["no picture" if row in broken else "" for row in rows], object)
        keys = np.array([f"face-{row}" for row in rows], object)
        yield {
            "row": rows,
            "key": keys,
            "error": errors,
            "age": rows.astype(np.float32),
            "canvas": rows[:, None] * np.ones((1, 3)),
        }


def test_batches_come_in_the_order_asked_for_and_read_no_further() -> None:
    rows, read = np.array([[5, 0, 5], [1, 9, 2]]), list[int]()

    def watched() -> Iterator[Columns]:
        for block in blocks(12, 2):
            read.append(int(block["row"][0]))
            yield block

    ordered = iter(OrderedBatches([watched()], rows, {"weight": np.arange(12) / 2}))
    first = next(ordered)
    assert read == [0, 2, 4]
    assert first["row"].tolist() == first["age"].tolist() == [5, 0, 5]
    assert first["canvas"].tolist() == [[5] * 3, [0] * 3, [5] * 3]
    assert first["weight"].tolist() == [2.5, 0, 2.5]
    assert first["slot"].tolist() == [0, 1, 2]
    assert first.keys() == {"row", "age", "canvas", "weight", "slot"}
    assert next(ordered)["row"].tolist() == [1, 9, 2]
    with pytest.raises(StopIteration):
        next(ordered)


@pytest.mark.parametrize("world", [1, 2])
def test_the_place_of_a_broken_face_is_taken_by_its_neighbour_on_any_number_of_workers(world: int) -> None:
    rows = np.arange(16)
    streams = [
        OrderedBatches([blocks(16, 4, broken=(1, 6, 7))], sampler.share(rows, 8, rank, world))
        for rank in range(world)
    ]
    batches = list(zip(*streams, strict=True))
    rows_of_batch = [np.concatenate([part["row"] for part in parts]) for parts in batches]
    assert [batch.tolist() for batch in rows_of_batch] == [
        [0, 0, 2, 3, 4, 5, 4, 5],
        [8, 9, 10, 11, 12, 13, 14, 15],
    ]
    # a face comes with the number of its own place, whose random map it is given
    slots = np.concatenate([part["slot"] + rank * 8 // world for rank, part in enumerate(batches[0])])
    assert slots.tolist() == rows_of_batch[0].tolist()
    assert [row for stream in streams for row in stream.skipped][:3] == [
        (f"face-{row}", "no picture") for row in (1, 6, 7)
    ]


def test_a_face_that_is_gone_and_a_batch_without_any() -> None:
    ordered = OrderedBatches([blocks(8, 2, broken=(2, 3), gone=(6,))], np.arange(8).reshape(4, 2))
    batches = list(ordered)
    assert [batch["row"].tolist() for batch in batches] == [[0, 1], [1, 1], [4, 5], [7, 7]]
    assert [batch["slot"].tolist() for batch in batches] == [[0, 1], [0, 1], [0, 1], [1, 1]]
    assert ordered.skipped == [
        ("face-2", "no picture"),
        ("face-3", "no picture"),
        ("row 6", "the shards no longer hold it"),
    ]
    begin = OrderedBatches([blocks(4, 2, broken=(0, 1))], np.arange(4).reshape(2, 2))
    assert [batch["row"].tolist() for batch in begin] == [[2, 2], [2, 3]]
    none = OrderedBatches([blocks(4, 2, broken=(0, 1, 2, 3))], np.arange(4).reshape(2, 2))
    assert list(none) == []
    assert len(none.skipped) == 4


def test_batches_of_several_sets_read_each_stream_as_far_as_they_need() -> None:
    read = list[str]()

    def stream(name: str, first: int, count: int) -> Iterator[Columns]:
        for block in blocks(first + count, 2):
            if block["row"][0] >= first:
                read.append(name)
                yield block

    rows = np.array([[0, 8, 1], [9, 2, 10]])
    ordered = iter(OrderedBatches([stream("a", 0, 8), stream("b", 8, 6)], rows, starts=(0, 8)))
    assert next(ordered)["row"].tolist() == [0, 8, 1]
    assert read == ["a", "b"]
    assert next(ordered)["row"].tolist() == [9, 2, 10]
    assert read == ["a", "b", "a", "b"]


# --- prefetching ------------------------------------------------------------------------------


def test_prefetching_keeps_the_order_and_passes_errors_on() -> None:
    def numbers() -> Iterator[int]:
        yield from range(20)
        raise RuntimeError("the disk is gone")

    items, prefetcher = list[int](), Prefetcher(numbers(), 2, CPU)
    with pytest.raises(RuntimeError, match="the disk is gone"):
        items.extend(prefetcher)
    assert items == list(range(20))
    assert prefetcher.waited > 0
    assert list(Prefetcher([], 1, CPU)) == []


def test_prefetching_ends_with_its_reader() -> None:
    numbers: list[int] = []

    def endless() -> Iterator[int]:
        while True:
            numbers.append(len(numbers))
            yield numbers[-1]

    for number in Prefetcher(endless(), 2, CPU):
        if number == 3:
            break
    count = len(numbers)
    assert count <= 8
    assert (
        next(iter(Prefetcher(endless(), 1, CPU))) == count
    )  # the thread before has ended: nobody else counts


# --- checkpoints --------------------------------------------------------------------------------


def state(step: int) -> dict[str, Any]:
    return {
        "network": {"weight": torch.full((4,), float(step))},
        "progress": {"step": step},
        "log": [{"loss": 0.5}],
        "pair": (1, None),
    }


def test_a_checkpoint_is_of_the_moment_it_was_asked_for(tmp_path: Path) -> None:
    place = str(tmp_path / "run" / "state.pt")
    assert checkpoint.load(place) is None
    checkpointer, now = AsyncCheckpointer(place), state(1)
    checkpointer.save(now)
    now["network"]["weight"].fill_(9)
    checkpointer.wait()
    loaded = checkpoint.load(place)
    assert loaded is not None
    assert loaded["network"]["weight"].tolist() == [1.0] * 4
    assert {name: loaded[name] for name in ("progress", "log", "pair")} == {
        "progress": {"step": 1},
        "log": [{"loss": 0.5}],
        "pair": (1, None),
    }


def test_a_full_disk_leaves_the_last_checkpoint_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "state.pt"
    checkpointer = AsyncCheckpointer(str(place))
    checkpointer.save(state(1))
    checkpointer.wait()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    checkpointer.save(state(2))
    with pytest.raises(UserError, match=r"^[^\n]*state\.pt: [^\n]*No space left on device[^\n]*$"):
        checkpointer.wait()
    monkeypatch.undo()
    checkpointer.check()  # said once
    assert {file.name for file in tmp_path.iterdir()} == {"state.pt", "state.before.pt"}
    loaded = checkpoint.load(str(place))
    assert loaded is not None
    assert loaded["progress"] == {"step": 1}


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_a_checkpoint_that_is_none(content: bytes | None, tmp_path: Path) -> None:
    place = tmp_path / "state.pt"
    if content is None:  # cut off
        checkpointer = AsyncCheckpointer(str(place))
        checkpointer.save(state(1))
        checkpointer.wait()
        content = place.read_bytes()[:-200]
    place.write_bytes(content)
    with pytest.raises(UserError, match=r"state\.pt: is no checkpoint, or damaged .*--fresh$"):
        checkpoint.load(str(place))


# --- curves -------------------------------------------------------------------------------------


def log(epochs: int) -> list[dict[str, Any]]:
    return [
        {
            "epoch": k,
            "loss": 5.0 - k,
            "loss.triplet": 0.1 * k,
            "val_mae": 9.0 - k,
            "best": True,
            "stage": "main",
            "time": 1e9 + k,
        }
        for k in range(1, epochs + 1)
    ]


def test_events_are_what_tensorboard_reads(tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event

    content = curves.events(log(3))
    assert content.startswith(curves.events(log(2)))  # so that a reader that follows the file goes on
    events, rest = [], content
    while rest:  # a record: length, checksum, event, checksum
        size = int.from_bytes(rest[:8], "little")
        events.append(Event.FromString(rest[12 : 12 + size]))
        rest = rest[16 + size :]
    assert events[0].file_version == "brain.Event:2"
    read = [
        (event.step, {value.tag: round(value.simple_value, 4) for value in event.summary.value})
        for event in events[1:]
    ]
    assert read == [
        (k, {"loss": 5.0 - k, "loss/triplet": round(0.1 * k, 4), "val_mae": 9.0 - k}) for k in (1, 2, 3)
    ]


def test_curves_are_a_picture_also_without_validation_faces() -> None:
    for records in (log(3), [record | {"val_mae": float("nan")} for record in log(1)]):
        picture = curves.learning_curves(records)
        assert picture.startswith(b"\x89PNG")
        assert len(picture) > 5000
