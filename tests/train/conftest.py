"""Drawn face shards and a small experiment on them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from ageray.synthetic import faces
from tests.train.small import BROKEN


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """192 drawn faces of 64 people in two shards, and twelve rows without an image."""
    folder = tmp_path_factory.mktemp("shards") / "drawn"
    first, _ = faces.write_faces_table(folder, 192, subjects=64, size=80, shards=2)
    table = pq.read_table(first)
    spoilt = table.slice(0, BROKEN).to_pylist()
    rows = [
        row | {"key": f"broken-{k}", "subject": None, "image": b"no picture"} for k, row in enumerate(spoilt)
    ]
    pq.write_table(pa.concat_tables([table, pa.Table.from_pylist(rows, schema=table.schema)]), first)
    return folder


@pytest.fixture(scope="module")
def settings(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small experiment in two stages, with everything on that a resumed run must carry over."""
    folder = tmp_path_factory.mktemp("settings")
    warm = folder / "warm"
    faces.write_faces_table(warm, 64, seed=9, size=80)
    stages = [
        {"name": "warm", "epochs": 1, "shards": str(warm), "optimizer": {"lr": 1e-3, "body_lr": 1e-4}},
        {"name": "main", "epochs": 2, "optimizer": {"name": "sgd", "lr": 0.01}},
    ]
    augment = {"tint": 0.1, "gamma": 0.3, "gray": 0.2, "blur": 0.3, "noise": 0.3, "erase": 0.3}
    train = {
        "batch_size": 16,
        "shuffle": 32,
        "precision": "float32",
        "ema": 0.8,
        "stages": stages,
        "augment": augment,
        "sync_batchnorm": True,
    }
    content = {
        "model": {"name": "residual_cnn", "width": 0.25, "ages": [-15, 120]},
        "loss": {"neighborhood": {"normalize": True}},
        "align": {"size": 48},
        "train": train,
        "data": {"name": "drawn", "shards": str(shards)},
        "protocol": {"val": 0.2, "test": 0.2},
        "scale": {
            "gpu": False,
            "threads": 1,
            "progress": False,
            "decode_batch": 16,
            "object_store_mib": 256,
            "checkpoint_steps": 3,
        },
    }
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(content))
    return file
