"""What a search found, as its report: trials, importance of each setting, finalists with intervals, and which differences are real."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ageray import metrics
from ageray.data.splits import Split
from ageray.metrics.paired_tests import LEVEL
from ageray.train import plan
from ageray.train.in_memory.face_cache import FaceCache
from ageray.train.in_memory.train import Fold
from ageray.tune import winner
from ageray.tune.finalists import RECIPE, Contender, Run
from ageray.tune.proposals import importance
from ageray.tune.space import Space
from ageray.tune.trials import Trial

Record = dict[str, Any]


def report(
    labelled: pa.Table,
    split: Split,
    held: FaceCache,
    fold: Fold,
    space: Space,
    tried: Sequence[Trial],
    chosen: Sequence[Contender],
    runs: dict[str, list[Run]],
) -> Record:
    """Everything that `ageray.tune.page.search_report` draws."""
    experiment, settings = space.written.experiment, space.tune
    found = _Finalists(labelled, held, fold, settings.metric, chosen, runs)
    return {
        "model": experiment.model.name,
        "data": {"name": experiment.data.name, "shards": experiment.data.shards},
        "protocol": experiment.protocol.model_dump(),
        "notes": [*space.notes, *split.notes],
        "faces": {name: len(getattr(fold, name)) for name in ("train", "val", "test")},
        "unusable": held.errors,
        "tune": settings.model_dump(mode="json"),
        "epochs": sum(stage.epochs for stage in experiment.train.stages),
        "space": {path: dimension.model_dump(mode="json") for path, dimension in space.ranges.items()},
        "recipe": space.defaults,
        "trials": [
            {**dataclasses.asdict(trial), "score": trial.score, "curve": trial.curve}
            for trial in _sorted(tried)
        ],
        "importance": _importance(space, tried),
        "finalists": found.finalists(),
        "comparisons": found.comparisons(),
        "winner": found.winner(settings.seed, len(tried)),
        "training": plan.facts(experiment, labelled, split),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "seconds": {"trials": max(trial.clock for trial in tried), "finalists": found.seconds()},
    }


def _sorted(tried: Sequence[Trial]) -> list[Trial]:
    return sorted(tried, key=lambda trial: trial.number)


def _importance(space: Space, tried: Sequence[Trial]) -> list[Record]:
    """At the first rung, which every trial has reached and where all are alike, and at the end, for those that got there."""
    rung = space.tune.asha.grace_epochs
    stages = {
        f"after epoch {rung}": [
            (trial.values, trial.curve[rung - 1]) for trial in tried if len(trial.curve) >= rung
        ],
        "at the end": [
            (trial.values, trial.score)
            for trial in tried
            if trial.state == "finished" and trial.score is not None
        ],
    }
    if not space.tune.asha.enabled:
        del stages[f"after epoch {rung}"]
    made = [(when, len(scores), importance(space, scores)) for when, scores in stages.items()]
    return [{"when": when, "trials": count, "shares": shares} for when, count, shares in made if shares]


class _Finalists:
    """The contenders' runs, on the same faces."""

    def __init__(
        self,
        labelled: pa.Table,
        held: FaceCache,
        fold: Fold,
        metric: str,
        chosen: Sequence[Contender],
        runs: dict[str, list[Run]],
    ) -> None:
        self._chosen, self._runs, self._metric, self._val = chosen, runs, metric, len(fold.val)
        self._age = np.asarray(held.column("age", fold.test), np.float64)
        places = pc.index_in(pa.array(held.keys(fold.test), pa.string()), value_set=labelled.column("key"))
        subjects = labelled.column("subject").take(places).to_pylist()
        self._subjects = subjects if any(subject is not None for subject in subjects) else None

    def _said(self, one: Contender) -> Any:
        """What each seed says of the test faces: (S, T)."""
        return np.stack([run.ages["predicted"][self._val :] for run in self._runs[one.name]])

    def finalists(self) -> list[Record]:
        """Each contender: its runs, and the mean of its seeds."""
        made = []
        for one in self._chosen:
            tested = [metrics.mean_absolute_error(self._age, said) for said in self._said(one)]
            runs = self._runs[one.name]
            scores = [run.best(self._metric) for run in runs]
            each = [
                {"seed": run.seed, "score": score, "test_mae": mae}
                for run, score, mae in zip(runs, scores, tested, strict=True)
            ]
            means = {"score": float(np.mean(scores)), "test_mae": float(np.mean(tested))}
            made.append(
                {
                    "name": one.name,
                    "values": one.values,
                    "runs": each,
                    **means,
                    "deviation": float(np.std(tested, ddof=1)),
                }
            )
        return made

    def comparisons(self) -> list[Record]:
        """Each finalist minus the recipe, on the test faces; `real` where p times the number of comparisons (Bonferroni) is below 0.05."""
        others = [one for one in self._chosen if one.name != RECIPE]
        recipe = next(one for one in self._chosen if one.name == RECIPE)
        made = []
        for one in others:
            found = metrics.compare_seeds(self._age, self._said(one), self._said(recipe), self._subjects)
            about = {"first": one.name, "second": RECIPE, "real": found["p"] * len(others) < LEVEL}
            made.append({**found, **about, "first_mae": found["first"], "second_mae": found["second"]})
        return made

    def winner(self, seed: int, trials: int) -> Record:
        """Who has the least mean score on the validation faces: the test faces have no say. For the report and for the bundle's card."""
        best = min(self._chosen, key=lambda one: winner.mean_score(self._runs[one.name], self._metric))
        run = winner.closest(self._runs[best.name], self._metric)
        test = float(np.abs(run.ages["predicted"][self._val :] - self._age).mean())
        return {
            "name": best.name,
            "values": best.values,
            "train_seed": run.seed,
            "trials": trials,
            "search_seed": seed,
            "test_mae": test,
        }

    def seconds(self) -> float:
        """Of all trainings together."""
        return float(
            sum(record["seconds"] for runs in self._runs.values() for run in runs for record in run.log)
        )
