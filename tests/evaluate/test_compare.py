"""What a comparison says of two models besides their errors: settings, seeds, letters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ageray import bundle, config
from ageray.commands import train as command
from ageray.commands.terminal import tables
from ageray.errors import UserError
from ageray.evaluate.compare import compare_recipes, different_settings
from ageray.evaluate.page.comparison import comparison_report
from ageray.evaluate.results import _with_one_median
from ageray.experiment import Experiment
from ageray.train.plan import run_folder


def experiment(*words: str) -> Experiment:
    return config.load([], ["model.name=baseline", *words])


def predictions(seed: int, bias: float) -> pa.Table:
    rng = np.random.default_rng(seed)
    true = np.linspace(10, 70, 200)
    columns = {"age": true, "predicted": true + bias + rng.normal(0, 3, 200)}
    return pa.table(columns | {"subject": [f"s{number // 2}" for number in range(200)]})


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two recipes of three seeds each."""
    experiments = {}
    for seed in range(3):
        experiments[f"runs/a-{seed}"] = experiment(f"train.seed={seed}", "train.name=a")
        experiments[f"runs/b-{seed}"] = experiment(f"train.seed={seed}", "train.batch_size=32")

    class Loaded:
        def __init__(self, model: str) -> None:
            self.experiment = experiments[model]

    monkeypatch.setattr(bundle, "load", Loaded)
    return list(experiments)


def test_settings_that_differ_are_listed() -> None:
    rows = different_settings(
        [experiment("train.name=a", "scale.workers=2"), experiment("train.seed=2", "loss.sord={}")]
    )
    by_key = {row["key"]: row["values"] for row in rows}
    assert by_key["train.seed"] == [0, 2]
    assert by_key["train.name"] == ["a", None]
    assert by_key["loss.sord.weight"] == [None, 1.0]
    assert not any(key.startswith("scale") for key in by_key)
    assert different_settings([experiment(), experiment()]) == []


def test_recipes_with_several_seeds_are_compared_with_both_noises(models: list[str]) -> None:
    tested = []
    for model in models:
        tested.append(predictions(hash(model) % 1000, 4.0 if "/b-" in model else 0.0))
    [row] = compare_recipes(models, tested)
    assert (row["first"], row["second"], row["seeds"]) == ("runs/a-0", "runs/b-0", [0, 1, 2])
    assert row["p"] < 0.05
    assert row["mae"][0] < row["mae"][1]
    assert set(row["deviation"]) == {"faces", "seeds"}
    assert compare_recipes(models[:2], tested[:2]) == []  # one seed each


def test_a_comparison_is_readable_in_100_columns(
    models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"runs/{'a-long-name-of-a-run-' * 2}{number}" for number in range(3)]
    figure = {"value": 4.0, "low": 3.5, "high": 4.5}
    share = {"value": 0.9, "low": 0.8, "high": 0.95}
    curve = [{"years": 5, "share": share}]
    rows: list[dict[str, Any]] = []
    for name in names:
        row = {"name": name, "identity": "0" * 16, "mae": figure, "bias": figure, "cs5": share, "cs": curve}
        rows.append(row | {"coverage": share, "width": figure, "by_age": [], "report": "x/report.html"})
    pairs = [
        {
            "first": names[0],
            "second": names[1],
            "difference": figure,
            "permutation_p": 0.2,
            "wilcoxon_p": 0.2,
            "real": False,
        }
    ]
    tested = [predictions(hash(model) % 1000, 0.0) for model in models]
    comparison = {
        "data": {"name": "drawn"},
        "protocol": {"name": "all"},
        "images": 10,
        "models": rows,
        "pairs": pairs,
        "settings": [{"key": "train.seed", "values": [0, 1, None]}],
        "seeds": compare_recipes(models, tested),
        "warnings": [],
    }
    tables.show_comparison(comparison)
    lines = capsys.readouterr().out.splitlines()
    assert any("A - B" in line for line in lines)
    assert any("train.seed" in line and " - " in line for line in lines)
    table_lines = [line for line in lines if line.startswith(("┃", "│", "┏", "└"))]
    assert max(map(len, table_lines)) <= 100
    comparison_report(str(tmp_path), comparison)
    page = (tmp_path / "report.html").read_text()
    assert "What differs" in page
    assert "3 seeds each" in page


def test_a_report_has_one_training_median() -> None:
    audit = {
        "lines": ["a", "always the training median, 29 years: MAE 9"],
        "constant": {"median": 29, "mae": 9},
    }
    assert _with_one_median(audit, None) == audit
    changed = _with_one_median(audit, {"age": 30.0, "mae": 8.5})
    assert changed == {"lines": ["a"], "constant": {"median": 30.0, "mae": 8.5}}


def test_a_run_has_the_name_that_it_was_given() -> None:
    named = experiment("train.name=wide.2")
    assert run_folder(named).rsplit("/", 1)[-1].startswith("wide.2-")
    assert run_folder(experiment()).rsplit("/", 1)[-1].startswith("baseline-faces-")
    with pytest.raises(UserError, match="train.name"):
        experiment("train.name=a/b")


def test_seeds_below_one_are_refused() -> None:
    with pytest.raises(UserError, match="--seeds 0"):
        command.main(["model.name=baseline", "--seeds", "0"])
