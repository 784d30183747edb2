"""Between Ray Tune and the proposals: hands out values, hears of every epoch, keeps each trial that ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from ageray.tune.proposals import propose
from ageray.tune.space import Space
from ageray.tune.trainable import FAILED, RECORD, SCORE
from ageray.tune.trials import Trial

Show = Callable[[dict[str, Any]], None]


@dataclass
class _Running:
    number: int
    values: dict[str, Any]
    epochs: list[dict[str, Any]] = field(default_factory=list)


class Proposer(Searcher):
    """Ray Tune's searcher. `tried` are the trials that had ended before; `ended` is called with each that ends, `clock` tells the search's seconds.

    Tune's own OptunaSearch resumes from a pickle and starts its random numbers anew; this one is a function of the finished trials."""

    def __init__(
        self,
        space: Space,
        tried: list[Trial],
        ended: Callable[[Trial], None],
        clock: Callable[[], float],
        show: Show,
    ) -> None:
        super().__init__(metric=SCORE, mode="min")
        self._space, self._tried, self._ended, self._clock, self._show = space, tried, ended, clock, show
        self._running: dict[str, _Running] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next number that has no trial, its values and the experiment with them."""
        taken = {trial.number for trial in self._tried} | {
            running.number for running in self._running.values()
        }
        number = next(number for number in range(len(taken) + 1) if number not in taken)
        values = propose(
            self._space, number, self._tried, [running.values for running in self._running.values()]
        )
        self._running[trial_id] = _Running(number, values)
        return {"number": number, "experiment": self._space.experiment(values).model_dump_json()}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """An epoch after which the trial goes on."""
        self._hear(self._running[trial_id], result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """The end: by itself, by successive halving, or because its process died."""
        running = self._running.pop(trial_id)
        reason = "its process died; see Ray's logs" if error else (result or {}).get(FAILED, "")
        if not reason and result is not None:
            self._hear(running, result)
        whole = bool(running.epochs) and running.epochs[-1]["epoch"] == running.epochs[-1]["epochs"]
        state: Literal["finished", "stopped", "failed"] = (
            "failed" if reason else "finished" if whole else "stopped"
        )
        trial = Trial(
            running.number,
            running.values,
            state,
            running.epochs,
            self._space.tune.metric,
            self._clock(),
            reason,
        )
        self._tried.append(trial)
        self._ended(trial)

    def _hear(self, running: _Running, result: dict[str, Any]) -> None:
        record = json.loads(result[RECORD])
        if not running.epochs or record["epoch"] > running.epochs[-1]["epoch"]:
            running.epochs.append(record)
            self._show({**record, "kind": "epoch", "number": running.number, "score": result[SCORE]})

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the file of trials is what a search goes on from, and nothing here is ever unpickled."""
        Path(checkpoint_path).touch()

    def __reduce__(self) -> tuple[type[object], tuple[()]]:
        """Nothing; Tune pickles its settings, this searcher among them, and here nobody reads that."""
        return object, ()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing; see `save`."""


def replay(scheduler: TrialScheduler, tried: list[Trial]) -> None:
    """Shows successive halving the finished trials, in the order of their ends, as if they had just run: its rungs are then what they were."""
    for trial in tried:
        stand_in: Any = SimpleNamespace(trial_id=f"before-{trial.number}")
        nobody: Any = None
        scheduler.on_trial_add(nobody, stand_in)
        results = [
            {"epoch": record["epoch"], SCORE: score}
            for record, score in zip(trial.epochs, trial.curve, strict=True)
        ]
        for result in results[:-1]:
            scheduler.on_trial_result(nobody, stand_in, result)
        scheduler.on_trial_complete(nobody, stand_in, results[-1] if results else {})
