"""Batches from the whole set, and what a plan tells before training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from ageray import config
from ageray.data.labelled_faces import labelled_faces
from ageray.data.row_index import RowIndex
from ageray.experiment import Experiment
from ageray.synthetic import faces as synthetic_faces
from ageray.train import loader, plan, sampler
from ageray.train.state import new_state

FACES, BATCH, BUFFER = 60, 8, 16


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "drawn"
    synthetic_faces.write_faces_table(folder, FACES, subjects=20, size=64, shards=3)
    return folder


def experiment(shards: Path, runs: Path, *words: str) -> Experiment:
    return config.load(
        [],
        [
            f"data.shards={shards}",
            f"scale.runs={runs}",
            "protocol={name: random, val: 0, test: 0}",
            "loss.neighborhood={}",
            "align.size=16",
            f"train.batch_size={BATCH}",
            f"train.shuffle={BUFFER}",
            "scale.decode_batch=8",
            *words,
        ],
    )


@pytest.mark.parametrize("first", [0, 3])
def test_batches_of_the_whole_set_decode_each_face_once(
    shards: Path, ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    """`train.shuffle_all`: the order is a shuffle of all, read in runs of `train.shuffle` faces."""
    settings = experiment(shards, tmp_path, "train.shuffle_all=true")
    planned = plan.make(settings)
    state = new_state(settings, torch.device("cpu"))
    state.start_stage(0, planned.steps[0])
    state.epoch_steps, state.epoch_progress.steps = 6, first
    runs = list[int]()
    streams = loader.Streams(settings, planned, loader.sources(settings, planned))
    canvases = streams._canvases

    def counted(folder: str, lookup: Any) -> Any:
        runs.append(len(lookup.row))
        return canvases(folder, lookup)

    monkeypatch.setattr(streams, "_canvases", counted)
    rows = np.concatenate([batch["row"] for batch in streams.training(state).ordered])
    order = sampler.shuffled(planned.faces["train"], None, (settings.train.seed, 0))
    assert rows.tolist() == order[first * BATCH : 6 * BATCH].tolist()
    assert np.abs(np.diff(order)).max() > 2 * BUFFER
    assert sum(runs) == len(rows)
    assert max(runs) == BUFFER


def test_copies_of_a_rare_face_are_spread_over_the_epoch(
    shards: Path, ray_local: None, tmp_path: Path
) -> None:
    """`train.balance: counts` with a buffer that could not hold the copies otherwise."""
    words = ["train.shuffle_all=true", "train.balance=counts", "train.balance_count=4"]
    settings = experiment(shards, tmp_path, *words, "train.thinned_ages=[0, 120]")
    planned = plan.make(settings)
    years = np.unique(np.floor(planned.faces["train"].age + 0.5))
    assert planned.steps == [4 * len(years) // BATCH]
    state = new_state(settings, torch.device("cpu"))
    state.start_stage(0, planned.steps[0])
    state.epoch_steps = planned.steps[0]
    streams = loader.Streams(settings, planned, loader.sources(settings, planned))
    batches = list(streams.training(state).ordered)
    rows = np.concatenate([batch["row"] for batch in batches])
    ages = np.concatenate([batch["age"] for batch in batches])
    assert np.array_equal(ages, planned.faces["train"].age[rows])
    counts = np.unique(rows, return_counts=True)[1]
    assert counts.max() >= 3
    assert len(rows) == planned.steps[0] * BATCH


def test_a_plan_tells_that_a_set_is_sorted_by_age() -> None:
    generator = np.random.default_rng(4)
    mixed, small = generator.uniform(0, 90, 600), generator.uniform(0, 90, 20)
    ages = np.concatenate([mixed, np.sort(mixed), np.sort(small)]).astype(np.float32)
    keys = [f"face-{number}" for number in range(len(ages))]
    faces = RowIndex.of(keys, ages, None, (0, 600, 1200))
    names = ["mixed", "sorted", "small"]
    for window in (1, 32, 200):
        [note] = plan.notes_on_order(faces, names, window)
        assert note.startswith("sorted: its faces lie in an order of ages that train.shuffle=")
        assert "set train.shuffle_all=true" in note
    assert plan.notes_on_order(faces, names, 600) == []  # the buffer holds the whole set


def test_a_plan_tells_what_the_faces_lack(shards: Path, tmp_path: Path) -> None:
    words = [
        "model.name=siamese",
        "model.backbone=resnet18",
        "loss={contrastive: {}, gender_contrastive: {}}",
    ]
    planned = plan.make(experiment(shards, tmp_path, *words))
    text = " ".join(planned.facts["notes"])
    assert "loss.gender_contrastive: no training face has a gender, so this term is 0" in text
    assert "no face validates: the last epoch's weights are taken, and ages are not calibrated" in text
    settings = experiment(shards, tmp_path, *words)
    table = labelled_faces(str(shards))
    some = pa.array(["male", "female", *[None] * (table.num_rows - 2)], pa.string())
    labelled = table.set_column(table.column_names.index("gender"), "gender", some)
    [note] = plan.notes(settings, labelled, 5)
    assert note.startswith("loss.gender_contrastive: 2 of 60 training faces have a gender")
    assert plan.notes(experiment(shards, tmp_path), table, 5) == []
