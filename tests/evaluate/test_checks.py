"""Age checks and several photos of a person, from predictions to report, page and terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ageray.commands.terminal import tables
from ageray.errors import UserError
from ageray.evaluate import results
from ageray.evaluate.page.evaluation import evaluation_report
from ageray.evaluate.predictions import CHECKS, _numbers
from ageray.experiment import Data
from ageray.predictor import Ages

FACES = 200


def predictions(checked: bool = True) -> pa.Table:
    """50 people of four photos each; the probabilities follow the predicted age."""
    rng = np.random.default_rng(0)
    true = rng.uniform(5, 60, FACES).astype(np.float32)
    age = true + rng.normal(0, 4, FACES).astype(np.float32)
    over = np.stack([1 / (1 + np.exp((limit - age) / 2)) for limit in (18, 25)], -1)
    good = np.ones(FACES, np.float32)
    empty = np.zeros((FACES, 3), np.float32)
    ages = Ages(age, age - 7, age + 7, empty, empty, over, quality=good / 2, unusual=good)
    columns: dict[str, Any] = {"key": [str(number) for number in range(FACES)], "age": true}
    columns["error"] = [""] * FACES
    numbers = _numbers(ages, np.ones(FACES, bool))
    names = ["predicted", "low", "high", *(field.name for field in CHECKS if checked)]
    columns |= {name: numbers[name] for name in names}
    quantiles = age[:, None] + np.linspace(-7, 7, 19, dtype=np.float32)
    columns["quantiles"] = pa.array(list(quantiles), pa.list_(pa.float32()))
    columns["subject"] = [f"person {number // 4}" for number in range(FACES)]
    columns["gender"] = ["male", "female"] * (FACES // 2)
    columns |= {"group": pa.nulls(FACES, pa.string()), "age_std": pa.nulls(FACES, pa.float32())}
    return pa.table(columns)


def report(rows: pa.Table, correlation: float | None = 0.0) -> dict[str, Any]:
    model = results.Model("drawn", "baseline", "id", 30.0, (), None, False, {"name": "drawn"}, correlation)
    audit = {"against": None, "lines": ["no audit"]}
    protocol = {"name": "all"}
    return results.build(
        rows, model=model, data=Data(name="drawn"), protocol=protocol, notes=[], warnings=[], audit=audit
    )


def test_columns_of_the_scores_table_are_stored() -> None:
    rows = predictions()
    assert rows.column("quality").to_pylist() == [0.5] * FACES
    assert rows.column("over_25").to_numpy().max() <= rows.column("over_18").to_numpy().max()


def test_rates_of_the_report_are_those_of_the_predictions() -> None:
    rows = predictions()
    true, over = rows.column("age").to_numpy(), rows.column("over_18").to_numpy()
    check = report(rows)["estimates"]["age_checks"][0]
    sure = next(row for row in check["thresholds"] if row["threshold"] == 0.9)
    assert sure["false_adult"]["value"] == pytest.approx((over[true < 18] >= 0.9).mean())
    assert sure["false_minor"]["value"] == pytest.approx((over[true >= 18] < 0.9).mean())
    assert [part["gender"] for part in sure["by_gender"]] == ["female", "male"]


def test_a_network_that_says_no_number_is_named() -> None:
    rows = predictions()
    place = rows.schema.get_field_index("predicted")
    nothing = pa.array(np.full(FACES, np.nan, np.float32))
    with pytest.raises(UserError, match="drawn: no tested face has an age.*diverged; lower train.stages"):
        report(rows.set_column(place, "predicted", nothing))


def test_several_photos_beat_one() -> None:
    people = report(predictions())["people"]
    assert (people["people"], people["photos"]) == (50, FACES)
    assert people["mae_all"] < 0.6 * people["mae_one"]


def test_without_probabilities_or_people_the_sections_are_left_out(tmp_path: Path) -> None:
    rows = predictions(checked=False)
    figures = report(rows, correlation=None)
    assert figures["estimates"]["age_checks"] is None
    assert "people" not in figures
    evaluation_report(str(tmp_path), figures, rows)
    page = (tmp_path / "report.html").read_text()
    assert "By probability" not in page
    assert "Several photos of a person" not in page


def test_page_and_terminal_show_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = predictions()
    figures = report(rows)
    evaluation_report(str(tmp_path), figures, rows)
    page = (tmp_path / "report.html").read_text()
    for words in ("By probability", "Several photos of a person", "MAE over ages 18 to 30"):
        assert words in page
    tables.show(figures)
    shown = capsys.readouterr().out
    assert "false adults" in shown
    assert "50 people with several photos" in shown
