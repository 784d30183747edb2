"""A run's figures for experiment trackers: MLflow and Weights & Biases (`scale.trackers`).

Each takes the records of epochs as the command receives them. A run that goes on continues the
tracker's run of the same name. Both are imported only when they are asked for, and work offline:
MLflow writes a database file beside the runs unless MLFLOW_TRACKING_URI names a server; W&B writes
files there for `wandb sync` unless WANDB_API_KEY is set. TensorBoard's file is written in any case.
"""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ageray import config, storage
from ageray.errors import UserError
from ageray.experiment import Experiment

Record = dict[str, Any]

_PACKAGES = {"mlflow": "mlflow-skinny", "wandb": "wandb"}
_PROJECT = "ageray"


class Mlflow:
    """A run of the experiment `ageray`, found again by its name."""

    def __init__(self, name: str, folder: str, settings: dict[str, Any]) -> None:
        self._client = _module("mlflow")
        if "MLFLOW_TRACKING_URI" not in os.environ:
            self._client.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        self._client.set_experiment(_PROJECT)
        earlier = self._client.search_runs(
            filter_string=f"attributes.run_name = '{name}'", max_results=1, output_format="list"
        )
        if earlier:
            self._client.start_run(run_id=earlier[0].info.run_id)
            return
        self._client.start_run(run_name=name)
        rows = list(settings.items())
        for start in range(0, len(rows), 100):  # at most so many a call
            self._client.log_params({key: str(value)[:500] for key, value in rows[start : start + 100]})

    def log(self, figures: dict[str, float], epoch: int) -> None:
        """The figures of an epoch."""
        self._client.log_metrics(
            {name.replace(".", "/"): value for name, value in figures.items()}, step=epoch
        )

    def close(self, finished: bool) -> None:
        """Ends the run."""
        self._client.end_run("FINISHED" if finished else "KILLED")


class Wandb:
    """A run of the project `ageray`, whose id is its name."""

    def __init__(self, name: str, folder: str, settings: dict[str, Any]) -> None:
        mode = os.environ.get("WANDB_MODE") or ("online" if "WANDB_API_KEY" in os.environ else "offline")
        wandb = _module("wandb")
        self._run = wandb.init(
            project=_PROJECT,
            name=name,
            id=name[-64:],
            resume="allow",
            dir=folder,
            mode=mode,
            config=settings,
            settings=wandb.Settings(silent=True),
        )

    def log(self, figures: dict[str, float], epoch: int) -> None:
        """The figures of an epoch."""
        self._run.log(figures, step=epoch)

    def close(self, finished: bool) -> None:
        """Ends the run."""
        self._run.finish(exit_code=0 if finished else 1)


_KINDS: dict[str, type[Mlflow] | type[Wandb]] = {"mlflow": Mlflow, "wandb": Wandb}


def check(experiment: Experiment) -> None:
    """Raises UserError if a tracker's package is missing."""
    for name in experiment.scale.trackers:
        _module(name)


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        remedy = f"pip install 'ageray[{name}]', or leave {name} out"
        raise UserError(
            f"scale.trackers={name}: the package {_PACKAGES[name]} is missing ({error}); {remedy}"
        ) from None


class Trackers:
    """The trackers of a run that is under way."""

    def __init__(self, trackers: Sequence[Mlflow | Wandb]) -> None:
        self._trackers = trackers

    def show(self, record: Record) -> None:
        """Passes the finite numbers of an epoch's record on; other records have none."""
        if record["kind"] != "epoch":
            return
        figures = {}
        for name, value in record.items():
            if isinstance(value, float) and math.isfinite(value) and name != "time":
                figures[name] = value
        for tracker in self._trackers:
            tracker.log(figures, record["epoch"])


@contextmanager
def tracking(experiment: Experiment, run_folder: str) -> Iterator[Trackers]:
    """The trackers of `scale.trackers` for the run in `run_folder`, in a `with` block."""
    names = experiment.scale.trackers
    folder = storage.absolute(experiment.scale.runs)
    if storage.is_remote(folder):
        folder = storage.absolute("runs")  # both write to a local disk
    settings = config.flat(experiment.model_dump(mode="json", exclude={"scale", "storage"}))
    name = run_folder.rstrip("/").rsplit("/", 1)[-1]
    if names:
        storage.make_folder(folder)
    trackers: list[Mlflow | Wandb] = []
    finished = False
    try:
        for each in names:
            trackers.append(_KINDS[each](name, folder, settings))
        yield Trackers(trackers)
        finished = True
    finally:
        for tracker in trackers:
            tracker.close(finished)
