"""The best trials and the recipe as it stands, each trained with several seeds; a run is kept as one file as it ends.

Shape letters: V validation faces, T test faces."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.exceptions import RayTaskError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from ageray import storage
from ageray.calibration import Calibration
from ageray.errors import UserError
from ageray.experiment import Experiment
from ageray.train.in_memory import train
from ageray.train.in_memory.slots import Share, on_device
from ageray.train.in_memory.train import Fold
from ageray.tune.searcher import Show
from ageray.tune.space import Space
from ageray.tune.trials import Trial, TrialFile

RECIPE = "recipe"
_FOLDER = "finalists"
AGES = ("predicted", "low", "high")


@dataclass(frozen=True)
class Contender:
    """Values that are trained again: `name` is `recipe` or, say, `trial 17`."""

    name: str
    values: dict[str, Any]

    def place(self, folder: str, seed: int) -> str:
        """Where its run with a seed is kept."""
        return storage.join(folder, _FOLDER, f"{self.name.replace(' ', '-')}-seed-{seed}.safetensors")


@dataclass(frozen=True)
class Run:
    """A contender's training with one seed: `ages` are `predicted`, `low`, `high` (V + T,) in years, calibrated, of the validation faces and, after
    them, of the test faces; `tensors` the weights (`network.`) and, where there is one, the gallery (`gallery.`)."""

    seed: int
    log: list[dict[str, Any]]
    calibration: Calibration
    ages: dict[str, NDArray[np.float32]]
    tensors: dict[str, Tensor]

    def best(self, metric: str) -> float:
        """The metric of the epoch that was kept or, of another metric than validation MAE, its least."""
        return float(min(record[metric] for record in self.log))


def contenders(space: Space, tried: Sequence[Trial]) -> list[Contender]:
    """The recipe, and the best trials that differ from it: those that finished, then those that were stopped."""
    good = [trial for trial in tried if trial.score is not None and trial.values != space.defaults]
    good.sort(key=lambda trial: (trial.state != "finished", trial.score, trial.number))
    best = [Contender(f"trial {trial.number}", trial.values) for trial in good[: space.tune.finalists.count]]
    return [Contender(RECIPE, space.defaults), *best]


def retrain(
    space: Space,
    chosen: Sequence[Contender],
    faces: Any,
    fold: Fold,
    share: Share,
    file: TrialFile,
    show: Show,
) -> dict[str, list[Run]]:
    """All runs of each contender, by its name, in the order of the seeds; those in `file.folder` are not trained again.

    Raises UserError where a loss is not finite.
    """
    first = space.written.experiment.train.seed + 1
    wanted = [(one, seed) for seed in range(first, first + space.tune.finalists.seeds) for one in chosen]
    whole = replace(fold, test=np.concatenate([fold.val, fold.test]))
    todo = [
        number
        for number, (one, seed) in enumerate(wanted)
        if not storage.exists(one.place(file.folder, seed))
    ]
    done = len(wanted) - len(todo)
    show({"kind": "finalists", "done": done, "total": len(wanted), "names": [one.name for one in chosen]})
    calls = [(number, (_seeded(space, *wanted[number]), faces, whole, share.threads)) for number in todo]
    with closing(share.map_unordered(_train, calls)) as ended:
        for number, ready in ended:
            one, seed = wanted[number]
            run = _outcome(ready, one, seed)
            storage.write_bytes(one.place(file.folder, seed), _packed(run, one, file.identity))
            done += 1
            told = {"name": one.name, "seed": seed, "score": run.best(space.tune.metric)}
            show({"kind": "finalist", "done": done, "total": len(wanted), **told})
    return {one.name: [_read(other, seed, file) for other, seed in wanted if other is one] for one in chosen}


def _seeded(space: Space, one: Contender, seed: int) -> Experiment:
    made = space.experiment(one.values)
    return made.model_copy(update={"train": made.train.model_copy(update={"seed": seed})})


def _train(experiment: Experiment, faces: dict[str, Any], fold: Fold, threads: int) -> Run:
    """A task."""
    with on_device(threads) as device:
        state = train.begin(experiment, faces, device)
        for _ in train.epochs_of(state, faces, fold):
            pass
        said = train.answers(state, faces, fold, ())
        gallery = train.full_gallery(state, faces, fold)
        tensors = {
            f"network.{name}": tensor.cpu().contiguous() for name, tensor in state.judged.state_dict().items()
        }
        if gallery is not None:
            tensors |= {
                f"gallery.{name}": tensor.cpu().contiguous() for name, tensor in gallery.tensors().items()
            }
        return Run(
            experiment.train.seed,
            said.log,
            said.calibration,
            {name: getattr(said, name) for name in AGES},
            tensors,
        )


def _outcome(ready: Any, one: Contender, seed: int) -> Run:
    try:
        run: Run = ray.get(ready)
    except RayTaskError as error:
        if isinstance(error.cause, FloatingPointError | torch.cuda.OutOfMemoryError):
            raise UserError(
                f"{one.name} with train.seed={seed}: {error.cause}; finished runs are kept"
            ) from None
        raise
    return run


def _packed(run: Run, one: Contender, identity: str) -> bytes:
    about = {
        "identity": identity,
        "values": one.values,
        "log": run.log,
        "calibration": run.calibration.to_card(),
    }
    ages = {name: torch.tensor(run.ages[name]) for name in AGES}
    return save_safetensors({**run.tensors, **ages}, {"ageray": json.dumps(about)})


def _read(one: Contender, seed: int, file: TrialFile) -> Run:
    place = one.place(file.folder, seed)
    content = storage.read_bytes(place)
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        about, tensors = json.loads(header["__metadata__"]["ageray"]), load_safetensors(content)
        ages = {name: tensors.pop(name).numpy() for name in AGES}
    except Exception:  # the library raises what its parser met
        raise UserError(f"{place}: not the run of a finalist; remove it, and it is trained again") from None
    if about["identity"] != file.identity or about["values"] != one.values:
        raise UserError(f"{place}: a run of other settings or faces; remove it, and it is trained again")
    return Run(seed, about["log"], Calibration.from_card(about["calibration"]), ages, tensors)
