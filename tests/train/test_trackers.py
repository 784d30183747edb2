"""Figures of a run in MLflow and Weights & Biases, offline; both are optional packages."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ageray import config
from ageray.errors import UserError
from ageray.train import trackers
from ageray.train.trackers import Trackers, tracking


class Recorder:
    """A tracker that keeps what it is given."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments, self.logged, self.ended = arguments, [], None
        made.append(self)

    def log(self, figures: dict[str, float], epoch: int) -> None:
        self.logged.append((epoch, figures))

    def close(self, finished: bool) -> None:
        self.ended = finished


made: list[Recorder] = []
EPOCH = {"kind": "epoch", "epoch": 1, "loss": 2.5, "val_mae": math.nan, "time": 1.0, "best": True}


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    made.clear()
    monkeypatch.setattr(trackers, "_KINDS", {"mlflow": Recorder, "wandb": Recorder})
    return made


def experiment(tmp_path: Path, *words: str) -> Any:
    return config.load([], ["model.name=baseline", f"scale.runs={tmp_path}", *words])


def test_epochs_are_passed_on_without_what_is_no_figure(recorded: list[Recorder], tmp_path: Path) -> None:
    settings = experiment(tmp_path, "scale.trackers=[mlflow, wandb]", "train.seed=7")
    with tracking(settings, f"{tmp_path}/baseline-x-1234") as tracked:
        tracked.show({"kind": "step", "step": 3})
        tracked.show(EPOCH)
    assert [each.logged for each in recorded] == [[(1, {"loss": 2.5})]] * 2
    assert [each.ended for each in recorded] == [True, True]
    name, folder, flat = recorded[0].arguments
    assert (name, folder) == ("baseline-x-1234", str(tmp_path))
    assert flat["train.seed"] == 7
    assert not any(key.startswith("scale") for key in flat)


def test_an_interrupted_run_is_closed_as_such(recorded: list[Recorder], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), tracking(experiment(tmp_path, "scale.trackers=[wandb]"), "runs/a"):
        raise KeyboardInterrupt
    assert [each.ended for each in recorded] == [False]


def test_without_trackers_nothing_is_imported(tmp_path: Path) -> None:
    with tracking(experiment(tmp_path), "runs/a") as tracked:
        tracked.show(EPOCH)
    assert isinstance(tracked, Trackers)
    program = "import sys, ageray.train.trackers; print({'mlflow', 'wandb'} & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout == "set()\n"


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(UserError, match=r"mlflow-skinny is missing .* pip install 'ageray\[mlflow\]'"):
        trackers.check(experiment(tmp_path, "scale.trackers=[mlflow]"))


def test_mlflow_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that goes on continues the same run of MLflow."""
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    settings = experiment(tmp_path, "scale.trackers=[mlflow]")
    for epoch in (1, 2):
        with tracking(settings, "runs/baseline-x") as tracked:
            tracked.show(EPOCH | {"epoch": epoch, "loss.sord": 1.5})
    [run] = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert run.info.run_name == "baseline-x"
    assert run.data.metrics == {"loss": 2.5, "loss/sord": 1.5}
    assert run.data.params["train.batch_size"] == "64"
    assert (tmp_path / "mlflow.db").is_file()


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    with tracking(experiment(tmp_path, "scale.trackers=[wandb]"), "runs/baseline-x") as tracked:
        tracked.show(EPOCH)
    assert list((tmp_path / "wandb").glob("offline-run-*-baseline-x"))
