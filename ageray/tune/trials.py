"""What was tried: a trial's record, and the file of the finished ones, from which a killed search goes on. No Ray."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

from ageray import config, storage
from ageray.config.load import difference
from ageray.config.nodes import flat
from ageray.errors import UserError
from ageray.experiment import Experiment, Tune

CONFIG, TUNE, TRIALS = "config.yaml", "tune.json", "trials.jsonl"
_MAY_CHANGE = ("trials", "minutes", "at_once", "finalists")


@dataclass(frozen=True)
class Trial:
    """A trial that has ended: `values` of the searched settings, a record an epoch (see `ageray.train.epochs.close`), the `curve` of its metric
    as the best so far after each epoch, and `clock`, the seconds that the search had run by then.

    `finished` had all epochs, `stopped` was stopped early as one of the worse, `failed` for `reason`."""

    number: int
    values: dict[str, Any]
    state: Literal["finished", "stopped", "failed"]
    epochs: list[dict[str, Any]]
    metric: str
    clock: float
    reason: str = ""

    @property
    def curve(self) -> list[float]:
        """The best of the metric so far after each epoch."""
        return list(accumulate((record[self.metric] for record in self.epochs), min))

    @property
    def score(self) -> float | None:
        """The best of the metric; None of a failed trial."""
        return self.curve[-1] if self.epochs and self.state != "failed" else None

    @property
    def seconds(self) -> float:
        """Of its epochs."""
        return float(sum(record["seconds"] for record in self.epochs))


@dataclass(frozen=True)
class TrialFile:
    """The folder of one search on one set of faces; `identity` names experiment, faces and space, and is in every line."""

    folder: str
    identity: str

    @classmethod
    def of(cls, folder: str, experiment: Experiment, faces: str, resume: bool) -> TrialFile:
        """Opens the folder of a search, or makes it.

        Raises UserError if it holds a search and `resume` is not given, or one of other settings (but for how long it searches) or faces.
        """
        assert experiment.tune is not None
        file = cls(folder, f"{config.digest(experiment)}-{faces}")
        settings, searched = storage.join(folder, CONFIG), storage.join(folder, TUNE)
        if storage.exists(searched) and storage.exists(settings):
            if not resume:
                raise UserError(
                    f"{folder}: holds a search; add --resume to go on with it, or give another folder with --out"
                )
            before = config.loads(storage.read_text(settings), settings)
            wrong = difference(before, experiment) or _other(
                json.loads(storage.read_text(searched)), experiment.tune
            )
            if wrong is not None:
                raise UserError(
                    f"{folder}: holds a search of other settings ({wrong}); give another folder with --out"
                )
        storage.make_folder(folder)
        storage.write_text(settings, config.dump(experiment))
        storage.write_text(searched, experiment.tune.model_dump_json(indent=1) + "\n")
        return file

    @property
    def place(self) -> str:
        """Where the trials are."""
        return storage.join(self.folder, TRIALS)

    def read(self) -> list[Trial]:
        """The trials that have ended. Raises UserError if they were of other faces."""
        if not storage.exists(self.place):
            return []
        trials = []
        for line, text in enumerate(storage.read_text(self.place).splitlines(), 1):
            try:
                found = json.loads(text)
                identity, trial = found.pop("identity"), Trial(**found)
            except (ValueError, TypeError, KeyError, AttributeError):
                raise UserError(
                    f"{self.place}:{line}: not the record of a trial; remove this line, and it is tried again"
                ) from None
            if identity != self.identity:
                raise UserError(
                    f"{self.place}:{line}: a trial on other faces (shards or model.weights have changed); give another folder"
                )
            trials.append(trial)
        return trials

    def write(self, trials: list[Trial]) -> None:
        """Keeps the trials: all of them are in the file, or none of the new ones."""
        lines = (json.dumps({**dataclasses.asdict(trial), "identity": self.identity}) for trial in trials)
        storage.write_text(self.place, "".join(f"{line}\n" for line in lines))


def search_digest(experiment: Experiment) -> str:
    """What a search is, in 8 hex digits: the experiment, and all of `tune` but how long it lasts."""
    assert experiment.tune is not None
    content = [config.digest(experiment), experiment.tune.model_dump(mode="json", exclude=set(_MAY_CHANGE))]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def _other(there: dict[str, Any], here: Tune) -> str | None:
    """The first setting in which a search differs from the one begun, with both values."""
    one, other = (
        {name: value for name, value in each.items() if name not in _MAY_CHANGE}
        for each in (there, here.model_dump(mode="json"))
    )
    one, other = flat(one), flat(other)
    names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    return (
        f"tune.{names[0]}: {json.dumps(one.get(names[0]))} there, {json.dumps(other.get(names[0]))} here"
        if names
        else None
    )
