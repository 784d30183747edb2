"""The report of a search: trials, importance of each setting, finalists and which differences are
real.
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ageray import metrics
from ageray.data.splits import Split
from ageray.machine.cpus import usable_cpus
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
    cache: FaceCache,
    fold: Fold,
    space: Space,
    trials: Sequence[Trial],
    chosen: Sequence[Contender],
    runs: dict[str, list[Run]],
) -> Record:
    """Everything that `ageray.tune.page.search_report` draws.

    chosen: the recipe, then the finalists. runs: of each of them, by its name.
    """
    experiment, settings = space.written.experiment, space.tune
    finalists = _Finalists(labelled, cache, fold, settings.metric, chosen, runs)
    ranges = {}
    for path, dimension in space.ranges.items():
        ranges[path] = dimension.model_dump(mode="json")
    return {
        "model": experiment.model.name,
        "data": {"name": experiment.data.name, "shards": experiment.data.shards},
        "protocol": experiment.protocol.model_dump(),
        "notes": [*space.notes, *split.notes],
        "faces": {"train": len(fold.train), "val": len(fold.val), "test": len(fold.test)},
        "unusable": cache.errors,
        "tune": settings.model_dump(mode="json"),
        "epochs": space.epochs,
        "space": ranges,
        "recipe": space.defaults,
        "trials": _trials(trials),
        "importance": _importance(space, trials),
        "finalists": finalists.finalists(),
        "comparisons": finalists.comparisons(),
        "winner": finalists.winner(settings.seed, len(trials)),
        "training": plan.facts(experiment, labelled, split),
        "machine": f"{platform.machine()}, {usable_cpus()} cores",
        "seconds": {"trials": max(trial.clock for trial in trials), "finalists": finalists.seconds()},
    }


def _trials(trials: Sequence[Trial]) -> list[Record]:
    """A record per trial, by number."""
    records = []
    for trial in sorted(trials, key=lambda trial: trial.number):
        records.append({**dataclasses.asdict(trial), "score": trial.score, "curve": trial.curve})
    return records


def _importance(space: Space, trials: Sequence[Trial]) -> list[Record]:
    """Importance after the first rung, which every trial reaches, and at the end, for finished
    trials.
    """
    rung = space.tune.asha.grace_epochs
    early, late = [], []
    for trial in trials:
        if len(trial.curve) >= rung:
            early.append((trial.values, trial.curve[rung - 1]))
        if trial.state == "finished" and trial.score is not None:
            late.append((trial.values, trial.score))
    stages = {"at the end": late}
    if space.tune.asha.enabled:
        stages = {f"after epoch {rung}": early, **stages}
    records = []
    for when, scores in stages.items():
        shares = importance(space, scores)
        if shares:
            records.append({"when": when, "trials": len(scores), "shares": shares})
    return records


class _Finalists:
    """The contenders' runs on the same faces. Shape letters: S seeds, T test faces."""

    def __init__(
        self,
        labelled: pa.Table,
        cache: FaceCache,
        fold: Fold,
        metric: str,
        chosen: Sequence[Contender],
        runs: dict[str, list[Run]],
    ) -> None:
        self._chosen, self._runs, self._metric, self._val = chosen, runs, metric, len(fold.val)
        self._age_T = np.asarray(cache.column("age", fold.test), np.float64)
        keys = pa.array(cache.keys(fold.test), pa.string())
        rows = pc.index_in(keys, value_set=labelled.column("key"))
        subjects = labelled.column("subject").take(rows)
        self._subjects: list[str | None] | None = None
        if subjects.null_count < len(subjects):
            self._subjects = subjects.to_pylist()

    def _predictions(self, contender: Contender) -> NDArray[np.float32]:
        """What each seed predicts for the test faces: (S, T)."""
        return np.stack([self._tested(run) for run in self._runs[contender.name]])

    def _tested(self, run: Run) -> NDArray[np.float32]:
        return run.ages["predicted"][self._val :]

    def finalists(self) -> list[Record]:
        """Each contender: its runs, and the mean over its seeds."""
        records = []
        for contender in self._chosen:
            runs, scores, maes = [], [], []
            for run in self._runs[contender.name]:
                scores.append(run.best(self._metric))
                maes.append(metrics.mean_absolute_error(self._age_T, self._tested(run)))
                runs.append({"seed": run.seed, "score": scores[-1], "test_mae": maes[-1]})
            record = {
                "name": contender.name,
                "values": contender.values,
                "runs": runs,
                "score": float(np.mean(scores)),
                "test_mae": float(np.mean(maes)),
                "deviation": float(np.std(maes, ddof=1)),
            }
            records.append(record)
        return records

    def comparisons(self) -> list[Record]:
        """Each finalist minus the recipe, on the test faces.

        `real`: p times the number of comparisons (Bonferroni) is below 0.05.
        """
        recipe, *others = self._chosen
        records = []
        for contender in others:
            comparison = metrics.compare_seeds(
                self._age_T, self._predictions(contender), self._predictions(recipe), self._subjects
            )
            record = {
                **comparison,
                "first": contender.name,
                "second": RECIPE,
                "real": comparison["p"] * len(others) < LEVEL,
                "first_mae": comparison["first"],
                "second_mae": comparison["second"],
            }
            records.append(record)
        return records

    def winner(self, seed: int, trials: int) -> Record:
        """The contender with the least mean score on the validation faces; test faces play no part.

        The record is for the report and for the bundle's card.
        """

        def mean_score(contender: Contender) -> float:
            return winner.mean_score(self._runs[contender.name], self._metric)

        best = min(self._chosen, key=mean_score)
        run = winner.best_run(self._runs[best.name], self._metric)
        return {
            "name": best.name,
            "values": best.values,
            "train_seed": run.seed,
            "trials": trials,
            "search_seed": seed,
            "test_mae": float(np.abs(self._tested(run) - self._age_T).mean()),
        }

    def seconds(self) -> float:
        """Of all trainings together."""
        total = 0.0
        for runs in self._runs.values():
            for run in runs:
                for record in run.log:
                    total += record["seconds"]
        return total
