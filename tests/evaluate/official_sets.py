"""Fabricated sets with the official labels and sizes of the papers' sets, and one picture for all
faces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from ageray.schema import FACES
from ageray.synthetic import faces as synthetic_faces

ROOT = Path(__file__).resolve().parents[2]
SIZES = {
    "morph": 55_134,
    "fgnet": 1_002,
    "cacd": 163_446,
    "chalearn_lap": 4_691,
    "imdb_wiki": 300_000,
    "megaage_asian": 43_945,
}
"""Faces of each set, as the papers count them."""
_ROWS = 20_000  # of a shard


def labels(name: str, count: int) -> list[dict[str, Any]]:
    """`count` rows with the labels that jobs.prepare gives to this set, in its proportions."""
    generator = np.random.default_rng(0)
    rows = []
    for number in range(count):
        row: dict[str, Any] = {"key": f"{name}/{number:06d}.jpg", "subject": None, "dataset": name}
        row["age"] = float(generator.integers(16, 78))
        row["gender"] = "female" if generator.random() < 0.15 else "male"
        if name == "morph":  # four photos a person; 77 % Black, 19 % White
            row["subject"] = f"{number // 4:06d}"
            row["group"] = str(generator.choice(["Black", "White", "Hispanic"], p=[0.77, 0.19, 0.04]))
        elif name == "fgnet":
            row |= {"subject": f"{number % 82 + 1:03d}", "gender": None, "age": float(number % 70)}
        elif name == "cacd":
            row |= {
                "subject": f"s{number % 2000}",
                "group": f"rank_{number % 2000 // 40 + 1}",
                "gender": None,
            }
        elif name == "chalearn_lap":
            part = ["train", "val", "test"][int(np.searchsorted([0.528, 0.770], number / count, "right"))]
            row |= {"key": f"{name}/{part}/{number:06d}.jpg", "gender": None, "age_std": 3.5}
        elif name == "imdb_wiki":
            row["subject"] = f"nm{number // 20:07d}"
        elif name == "megaage_asian":
            part = "train" if number / count < 0.9102 else "test"
            row |= {"key": f"{name}/{part}/{number:06d}.jpg", "gender": None, "age": float(number % 71)}
        rows.append(row)
    return rows


def fabricated(folder: Path, name: str, count: int, size: int = 64) -> Path:
    """Shards of a set with one picture for all faces, and the set's settings file beside them."""
    face = next(synthetic_faces.faces(1, seed=1, size=size))
    shared = {
        "image": face.jpeg(),
        "landmarks": face.points.ravel().tolist(),
        "box": list(map(float, face.box)),
    }
    shards = folder / "shards" / name
    shards.mkdir(parents=True)
    rows = labels(name, count)
    size = min(_ROWS, (len(rows) + 1) // 2)
    for number, first in enumerate(range(0, len(rows), size)):
        part = [shared | row for row in rows[first : first + size]]
        columns = {field.name: [row.get(field.name) for row in part] for field in FACES}
        pq.write_table(pa.table(columns, FACES), shards / f"faces-{number:05d}.parquet")
    content = yaml.safe_load((ROOT / "configs" / "data" / f"{name}.yaml").read_text())
    content["data"]["shards"] = str(shards)
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return folder / f"{name}.yaml"
