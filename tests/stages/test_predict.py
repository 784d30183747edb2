"""Columns of the scores table that the model fills, with and without a calibration that knows
pictures; refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from ageray import bundle, schema
from ageray.calibration import AgeChecks, Calibration, Difficulty, Intervals
from ageray.calibration.difficulty import Hinge
from ageray.errors import UserError
from ageray.experiment import Align, Experiment
from ageray.faces import quality
from ageray.faces.canvases import face_canvases
from ageray.models.build import build
from ageray.models.distance import FeatureDistance
from ageray.predictor import Predictor
from ageray.stages.columns import DETECTED_SCHEMA
from ageray.stages.predict import AgeFaces
from ageray.synthetic import faces as synthetic_faces

ALIGN = Align(size=48)
EXPERIMENT = Experiment.model_validate(
    {
        "model": {"name": "baseline", "ages": [-15, 120]},
        "align": ALIGN,
        "train": {"precision": "float32"},
    }
)
INTERVALS = Intervals((), (1.0,), (1.0,))


def detected(count: int = 4) -> pa.Table:
    rows = []
    for number, face in enumerate(synthetic_faces.faces(count, seed=3, size=110)):
        piece = face_canvases(face.jpeg(), face.points[None], face.box[None], ALIGN)
        rows.append(
            {
                "key": str(number),
                "image": f"{number}.jpg",
                "face": 0,
                "canvas": piece.pixels[0].tobytes(),
                "canvas_points": piece.points[0].ravel().tolist(),
                "canvas_box": piece.box[0].tolist(),
            }
        )
    rows.append({"key": "none", "image": "none.jpg", "face": -1, "error": schema.NO_FACE})
    return pa.Table.from_pylist(rows, schema=DETECTED_SCHEMA)


def write(folder: Path, calibration: Calibration | None) -> str:
    """An untrained network, with the distance of its own features where the calibration knows
    pictures."""
    network = build(EXPERIMENT.model, seed=0).eval()
    bundle.save(str(folder), network, EXPERIMENT, {})
    card = dict(bundle.load(str(folder)).card)
    if calibration is not None:
        card["calibration"] = calibration.to_card()
    if calibration is not None and calibration.difficulty is not None:
        draw = torch.Generator().manual_seed(0)
        size = network.backbone.features
        card = bundle.add_distance(
            str(folder), card, FeatureDistance.of(torch.rand(64, size, generator=draw), 8)
        )
    bundle.write_card(str(folder), card)
    return str(folder)


def learnt(weight: float, slope: float = 0.0, largest: float = 3.0) -> Calibration:
    hinge = Hinge("resolution", -1.0, 1.0, weight)  # every face is below a resolution of 1
    return Calibration(intervals=INTERVALS, difficulty=Difficulty((hinge,), 1.0, 0.0, slope, largest))


def rows_of(model: str) -> list[dict[str, Any]]:
    table = AgeFaces(model, threads=1, posterior=True)(detected())
    assert table.schema.names == [*schema.SCORES.names, "posterior"]
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def test_columns_come_behind_the_old_ones() -> None:
    first = ["key", "image", "face", "box", "landmarks", "detection", "age", "age_low", "age_high", "error"]
    assert schema.SCORES.names == [*first, "quality", "unusual", "over_18", "over_25"]


def test_a_model_that_has_not_learnt_pictures_leaves_them_empty(tmp_path: Path) -> None:
    rows = rows_of(write(tmp_path / "plain", None))
    for row in rows[:4]:
        assert row["quality"] is row["unusual"] is row["error"] is None
        years = np.arange(-15, 121)
        share = np.array(row["posterior"])
        assert row["over_18"] == pytest.approx(share[years >= 18].sum(), abs=1e-4)
        assert row["over_25"] == pytest.approx(share[years >= 25].sum(), abs=1e-4)
    assert [rows[4][name] for name in schema.OF_THE_MODEL] == [None] * 7
    assert rows[4]["error"] == schema.NO_FACE


def test_columns_are_those_of_the_predictor(tmp_path: Path) -> None:
    model = write(tmp_path / "learnt", learnt(0.3, slope=0.01))
    rows, table = rows_of(model), detected(4).slice(0, 4)
    side = int((len(table.column("canvas")[0].as_py()) / 3) ** 0.5)
    canvas = np.stack(
        [np.frombuffer(cell.as_py(), np.uint8).reshape(side, side, 3) for cell in table.column("canvas")]
    )
    points = np.array(table.column("canvas_points").to_pylist(), np.float32).reshape(-1, 5, 2)
    ages = Predictor(bundle.load(model), "cpu", 1).predict(
        canvas, points, np.array(table.column("canvas_box").to_pylist(), np.float32)
    )
    assert ages.quality is not None
    assert ages.measures is not None
    resolution = ages.measures[:, quality.MEASURES.index("resolution")]
    assert ages.quality == pytest.approx(np.exp(-0.3 * (1 - resolution)), rel=1e-3)
    for name, column in (("quality", ages.quality), ("unusual", ages.unusual), ("over_18", ages.over[:, 0])):
        assert [row[name] for row in rows[:4]] == pytest.approx(list(column), rel=1e-3)  # type: ignore[arg-type]


def test_a_poor_picture_widens_the_interval(tmp_path: Path) -> None:
    good, poor = (rows_of(write(tmp_path / str(weight), learnt(weight))) for weight in (0.0, np.log(2)))
    for before, after in zip(good[:4], poor[:4], strict=True):
        assert after["age"] == pytest.approx(before["age"])
        assert after["quality"] < 0.51
        assert after["age_high"] - after["age"] > 1.9 * (before["age_high"] - before["age"])


def test_an_age_that_would_be_a_guess_is_refused(tmp_path: Path) -> None:
    rows = rows_of(write(tmp_path / "strict", learnt(2.0)))
    for row in rows[:4]:
        assert row["age"] is row["age_low"] is row["age_high"] is row["over_18"] is row["over_25"] is None
        assert row["error"].startswith("unsure: an age would be a guess (quality 0.1")
        assert row["posterior"] is not None
    assert rows[4]["error"] == schema.NO_FACE


def test_no_faces_at_all(tmp_path: Path) -> None:
    table = AgeFaces(write(tmp_path / "learnt", learnt(0.3)), threads=1)(detected().slice(4))
    assert table.schema.equals(schema.SCORES)
    assert table.column("age").null_count == 1


def test_features_are_verified_and_name_the_model(tmp_path: Path) -> None:
    model = write(tmp_path / "learnt", learnt(0.3))
    loaded = bundle.load(model)
    assert loaded.distance() is not None
    card = json.loads((tmp_path / "learnt/card.json").read_text())
    other = bundle.add_distance(model, card, FeatureDistance.of(torch.rand(64, 512), 4))
    with pytest.raises(UserError, match=r"features\.safetensors has sha256"):
        bundle.load(model)
    bundle.write_card(model, other)
    assert bundle.load(model).identity != loaded.identity


def test_checks_are_calibrated(tmp_path: Path) -> None:
    checks = AgeChecks((1.0, 1.0), (50.0, -50.0))
    rows = rows_of(write(tmp_path / "checked", Calibration(intervals=INTERVALS, checks=checks)))
    assert [row["over_18"] for row in rows[:4]] == pytest.approx([1] * 4)
    assert [row["over_25"] for row in rows[:4]] == pytest.approx([0] * 4)


def test_people_of_a_batch(tmp_path: Path) -> None:
    predictor = Predictor(bundle.load(write(tmp_path / "plain", None)), "cpu", 1)
    table = detected(4).slice(0, 4)
    side = int((len(table.column("canvas")[0].as_py()) / 3) ** 0.5)
    canvas = np.stack(
        [np.frombuffer(cell.as_py(), np.uint8).reshape(side, side, 3) for cell in table.column("canvas")]
    )
    points = np.array(table.column("canvas_points").to_pylist(), np.float32).reshape(-1, 5, 2)
    ages = predictor.predict(canvas, points, np.zeros((4, 4), np.float32))
    one, other = predictor.people(ages, ["a", "b", "a", None], [0, 0, 10, 0])
    assert (one.subject, one.photos, other.photos) == ("a", 2, 1)
    assert min(ages.age[0], ages.age[2] + 10) <= one.age <= max(ages.age[0], ages.age[2] + 10)
