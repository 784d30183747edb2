"""The trials that have ended, and the file from which a killed search continues. No Ray."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

from ageray import config, storage
from ageray.errors import UserError
from ageray.experiment import Experiment
from ageray.tune.files import SearchFiles

_MAY_CHANGE = {"trials", "minutes", "at_once", "finalists"}
"""Settings of `tune` with which a search may continue after they have changed."""


@dataclass(frozen=True)
class Trial:
    """A trial that has ended.

    values: of the searched settings. state: `finished` trained all epochs, `stopped` was stopped
    early as one of the worse, `failed` for `reason`. epochs: a record each, see
    `ageray.train.epochs.close`. clock: the seconds that the search had run by then.
    """

    number: int
    values: dict[str, Any]
    state: Literal["finished", "stopped", "failed"]
    epochs: list[dict[str, Any]]
    metric: str
    clock: float
    reason: str = ""

    @property
    def curve(self) -> list[float]:
        """The least value of the metric so far, after each epoch."""
        return list(accumulate((record[self.metric] for record in self.epochs), min))

    @property
    def score(self) -> float | None:
        """The least value of the metric; None for a failed trial."""
        if not self.epochs or self.state == "failed":
            return None
        return self.curve[-1]


@dataclass(frozen=True)
class TrialFile:
    """The folder of one search on one set of faces.

    identity: names experiment, faces and space; it is in every line of the file of trials.
    """

    folder: str
    identity: str

    @classmethod
    def of(cls, folder: str, experiment: Experiment, faces: str, resume: bool) -> TrialFile:
        """Opens the folder of a search, or makes it. faces: their digest.

        Raises UserError if it has a search and `resume` is false, or a search of other settings.
        How long a search lasts may differ (`_MAY_CHANGE`).
        """
        assert experiment.tune is not None
        file = cls(folder, f"{config.digest(experiment)}-{faces}")
        files = file.files
        if storage.exists(files.tune) and storage.exists(files.config):
            if not resume:
                raise UserError(
                    f"{folder}: holds a search; add --resume to go on with it, "
                    "or give another folder with --out"
                )
            before = config.loads(storage.read_text(files.config), files.config)
            old = before.model_dump(mode="json", exclude={"scale"})
            old["tune"] = _identifying(json.loads(storage.read_text(files.tune)))
            new = experiment.model_dump(mode="json", exclude={"scale"})
            new["tune"] = _identifying(experiment.tune.model_dump(mode="json"))
            changes = config.differences(old, new)
            if changes:
                raise UserError(
                    f"{folder}: holds a search of other settings ({changes[0]}); give another folder with --out"
                )
        storage.make_folder(folder)
        storage.write_text(files.config, config.dump(experiment))
        storage.write_text(files.tune, experiment.tune.model_dump_json(indent=1) + "\n")
        return file

    @property
    def files(self) -> SearchFiles:
        """The files of the folder."""
        return SearchFiles(self.folder)

    def read(self) -> list[Trial]:
        """The trials that have ended. Raises UserError if they were of other faces."""
        uri = self.files.trials
        if not storage.exists(uri):
            return []
        trials = []
        for line, text in enumerate(storage.read_text(uri).splitlines(), 1):
            try:
                record = json.loads(text)
                identity, trial = record.pop("identity"), Trial(**record)
            except (ValueError, TypeError, KeyError, AttributeError):
                raise UserError(
                    f"{uri}:{line}: not the record of a trial; remove this line, and it is tried again"
                ) from None
            if identity != self.identity:
                raise UserError(
                    f"{uri}:{line}: a trial on other faces (shards or model.weights have changed); "
                    "give another folder"
                )
            trials.append(trial)
        return trials

    def write(self, trials: list[Trial]) -> None:
        """Replaces the file by these trials, whole or not at all."""
        lines = []
        for trial in trials:
            lines.append(json.dumps({**dataclasses.asdict(trial), "identity": self.identity}) + "\n")
        storage.write_text(self.files.trials, "".join(lines))


def search_digest(experiment: Experiment) -> str:
    """A digest of the experiment and of all of `tune` but how long it lasts: 8 hex digits."""
    assert experiment.tune is not None
    content = [config.digest(experiment), experiment.tune.model_dump(mode="json", exclude=_MAY_CHANGE)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def _identifying(tune: dict[str, Any]) -> dict[str, Any]:
    """The settings of a search that must stay the same when it goes on."""
    return {name: value for name, value in tune.items() if name not in _MAY_CHANGE}
