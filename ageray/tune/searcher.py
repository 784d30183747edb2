"""Ray Tune's searcher: proposes values, receives every epoch, saves each trial that ends."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from ageray import config
from ageray.tune.proposals import propose
from ageray.tune.space import Space
from ageray.tune.trainable import FAILED, RECORD, SCORE
from ageray.tune.trials import Trial

Show = Callable[[dict[str, Any]], None]

_REPEATS = 1
"""How often a trial that Tune has given up begins again. Tune starts one again whose process dies
while it trains, but not one whose process, used before, dies before its first epoch.
"""


@dataclass
class _Running:
    number: int
    values: dict[str, Any]
    epochs: list[dict[str, Any]] = field(default_factory=list)

    def state(self, reason: str) -> Literal["finished", "stopped", "failed"]:
        """How the trial ended; `reason` is '' if it did not fail."""
        if reason:
            return "failed"
        if self.epochs and self.epochs[-1]["epoch"] == self.epochs[-1]["epochs"]:
            return "finished"
        return "stopped"


class Proposer(Searcher):
    """Proposes by `ageray.tune.proposals`.

    Tune's own OptunaSearch resumes from a pickle and draws new random numbers then. This searcher
    is a function of the trials that have ended.
    """

    def __init__(
        self,
        space: Space,
        trials: list[Trial],
        ended: Callable[[Trial], None],
        clock: Callable[[], float],
        show: Show,
    ) -> None:
        """trials: those that ended before; each that ends is appended. ended: called with each that
        ends. clock: the seconds that the search has run."""
        super().__init__(metric=SCORE, mode="min")
        self._space, self._trials, self._ended, self._clock, self._show = space, trials, ended, clock, show
        self._running: dict[str, _Running] = {}
        self._deaths = Counter[int]()

    def suggest(  # type: ignore[override]  # Tune takes FINISHED too
        self, trial_id: str
    ) -> dict[str, Any] | str | None:
        """The lowest number that has no trial, and the experiment with the proposed values; None
        while the last ones run; FINISHED when `tune.trials` have ended.
        """
        running = list(self._running.values())
        numbers = {trial.number for trial in self._trials} | {trial.number for trial in running}
        number = 0
        while number in numbers:
            number += 1
        if number >= self._space.tune.trials:
            return None if running else Searcher.FINISHED
        values = propose(self._space, number, self._trials, [trial.values for trial in running])
        self._running[trial_id] = _Running(number, values)
        experiment = config.with_absolute_paths(self._space.experiment(values))
        return {"number": number, "experiment": experiment.model_dump_json()}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Receives an epoch after which the trial continues."""
        self._add_epoch(self._running[trial_id], result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Receives the end: the last epoch, early stopping, a failure, or a dead process."""
        running = self._running.pop(trial_id)
        if error:
            self._deaths[running.number] += 1
            if self._deaths[running.number] <= _REPEATS:
                return  # the number is free: `suggest` gives it again
        reason = "its process died; see Ray's logs"
        if not error:
            reason = (result or {}).get(FAILED, "")
        if not reason and result is not None:
            self._add_epoch(running, result)
        trial = Trial(
            running.number,
            running.values,
            running.state(reason),
            running.epochs,
            self._space.tune.metric,
            self._clock(),
            reason,
        )
        self._trials.append(trial)
        self._ended(trial)

    def _add_epoch(self, running: _Running, result: dict[str, Any]) -> None:
        record = json.loads(result[RECORD])
        if not running.epochs or record["epoch"] > running.epochs[-1]["epoch"]:
            running.epochs.append(record)
            self._show({**record, "kind": "epoch", "number": running.number, "score": result[SCORE]})

    def save(self, checkpoint_path: str) -> None:
        """Saves nothing: a search continues from the file of trials; nothing is unpickled."""
        Path(checkpoint_path).touch()

    def __reduce__(self) -> tuple[type[object], tuple[()]]:
        """Pickles nothing: Tune pickles its settings, this searcher among them, and nobody reads
        that.
        """
        return object, ()

    def restore(self, checkpoint_path: str) -> None:
        """Restores nothing; see `save`."""


def replay(scheduler: TrialScheduler, trials: list[Trial]) -> None:
    """Shows successive halving the trials that ended, in that order, so that its rungs are filled
    again.
    """
    for trial in trials:
        stand_in: Any = SimpleNamespace(trial_id=f"before-{trial.number}")
        no_controller: Any = None
        scheduler.on_trial_add(no_controller, stand_in)
        results = []
        for record, score in zip(trial.epochs, trial.curve, strict=True):
            results.append({"epoch": record["epoch"], SCORE: score})
        for result in results[:-1]:
            scheduler.on_trial_result(no_controller, stand_in, result)
        scheduler.on_trial_complete(no_controller, stand_in, results[-1] if results else {})
