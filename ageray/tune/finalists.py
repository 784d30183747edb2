"""The finalists: the best trials and the recipe as it stands, each trained with several seeds.

A run is saved as one file when it ends, so that a killed search does not repeat it.

Shape letters: V validation faces, T test faces.
"""

from __future__ import annotations

import itertools
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

from ageray import config, storage
from ageray.calibration import Calibration
from ageray.errors import UserError
from ageray.experiment import Experiment
from ageray.train.in_memory import train
from ageray.train.in_memory.slots import TaskSlots, on_device
from ageray.train.in_memory.train import Fold
from ageray.tune.searcher import Show
from ageray.tune.space import Space
from ageray.tune.trials import Trial, TrialFile

RECIPE = "recipe"
AGES = ("predicted", "low", "high")


@dataclass(frozen=True)
class Contender:
    """Settings that are trained again: `name` is `recipe` or, say, `trial 17`."""

    name: str
    values: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A contender's training with one seed.

    ages: `predicted`, `low`, `high` (V + T,) in years, calibrated, of the validation faces and then
    the test faces. tensors: the weights (`network.`) and the gallery (`gallery.`) if there is one.
    """

    seed: int
    log: list[dict[str, Any]]
    calibration: Calibration
    ages: dict[str, NDArray[np.float32]]
    tensors: dict[str, Tensor]

    def best(self, metric: str) -> float:
        """The least value of the metric over the epochs."""
        return float(min(record[metric] for record in self.log))


def contenders(space: Space, trials: Sequence[Trial]) -> list[Contender]:
    """The recipe, then the best trials with other settings: finished ones before stopped ones."""
    candidates = []
    for trial in trials:
        if trial.score is not None and trial.values != space.defaults:
            candidates.append(trial)
    candidates.sort(key=lambda trial: (trial.state != "finished", trial.score, trial.number))
    chosen = [Contender(RECIPE, space.defaults)]
    for trial in candidates[: space.tune.finalists.count]:
        chosen.append(Contender(f"trial {trial.number}", trial.values))
    return chosen


def retrain(
    space: Space,
    chosen: Sequence[Contender],
    faces: Any,
    fold: Fold,
    slots: TaskSlots,
    file: TrialFile,
    show: Show,
) -> dict[str, list[Run]]:
    """All runs of each contender, by its name, in the order of the seeds.

    Runs that `file.files` has already are not trained again. faces: a reference to columns in the
    object store. show: receives records of `kind` "finalists" and "finalist". Raises UserError if a
    loss is not finite.
    """
    first = space.written.experiment.train.seed + 1
    seeds = range(first, first + space.tune.finalists.seeds)
    whole = replace(fold, test=np.concatenate([fold.val, fold.test]))
    runs = list(itertools.product(seeds, chosen))
    calls = []
    for number, (seed, contender) in enumerate(runs):
        if not storage.exists(file.files.finalist(contender.name, seed)):
            arguments = (_with_seed(space, contender, seed), faces, whole, slots.threads)
            calls.append((number, arguments))
    done = len(runs) - len(calls)
    names = [contender.name for contender in chosen]
    show({"kind": "finalists", "done": done, "total": len(runs), "names": names})
    with closing(slots.map_unordered(_train, calls)) as results:
        for number, ready in results:
            seed, contender = runs[number]
            run = _result(ready, contender, seed)
            content = _to_bytes(run, contender, file.identity)
            storage.write_bytes(file.files.finalist(contender.name, seed), content)
            done += 1
            record = {"name": contender.name, "seed": seed, "score": run.best(space.tune.metric)}
            show({"kind": "finalist", "done": done, "total": len(runs), **record})
    by_name = dict[str, list[Run]]()
    for seed, contender in runs:
        by_name.setdefault(contender.name, []).append(_read(contender, seed, file))
    return by_name


def _with_seed(space: Space, contender: Contender, seed: int) -> Experiment:
    experiment = config.with_absolute_paths(space.experiment(contender.values))
    return experiment.model_copy(update={"train": experiment.train.model_copy(update={"seed": seed})})


def _train(experiment: Experiment, faces: dict[str, Any], fold: Fold, threads: int) -> Run:
    """A Ray task: one run."""
    with on_device(threads) as device:
        state = train.begin(experiment, faces, device)
        for _ in train.epochs_of(state, faces, fold):
            pass
        result = train.predict_fold(state, faces, fold, ())
        gallery = train.full_gallery(state, faces, fold)
        tensors = {}
        for name, tensor in state.eval_network.state_dict().items():
            tensors[f"network.{name}"] = tensor.cpu().contiguous()
        if gallery is not None:
            for name, tensor in gallery.tensors().items():
                tensors[f"gallery.{name}"] = tensor.cpu().contiguous()
        ages = {name: getattr(result, name) for name in AGES}
        return Run(experiment.train.seed, result.log, result.calibration, ages, tensors)


def _result(ready: Any, contender: Contender, seed: int) -> Run:
    """The run behind a reference. Raises UserError for a training that its settings made
    impossible.
    """
    try:
        run: Run = ray.get(ready)
    except RayTaskError as error:
        if isinstance(error.cause, FloatingPointError | torch.cuda.OutOfMemoryError):
            raise UserError(
                f"{contender.name} with train.seed={seed}: {error.cause}; finished runs are kept"
            ) from None
        raise
    return run


def _to_bytes(run: Run, contender: Contender, identity: str) -> bytes:
    """A safetensors file whose metadata has what is no tensor."""
    about = {
        "identity": identity,
        "values": contender.values,
        "log": run.log,
        "calibration": run.calibration.to_card(),
    }
    tensors = dict(run.tensors)
    for name in AGES:
        tensors[name] = torch.tensor(run.ages[name])
    return save_safetensors(tensors, {"ageray": json.dumps(about)})


def _read(contender: Contender, seed: int, file: TrialFile) -> Run:
    """What `_to_bytes` wrote. Raises UserError for a file of another kind, or of other settings or
    faces.
    """
    uri = file.files.finalist(contender.name, seed)
    content = storage.read_bytes(uri)
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        about, tensors = json.loads(header["__metadata__"]["ageray"]), load_safetensors(content)
        ages = {name: tensors.pop(name).numpy() for name in AGES}
    except Exception:  # safetensors raises whatever its parser met
        raise UserError(f"{uri}: not the run of a finalist; remove it, and it is trained again") from None
    if about["identity"] != file.identity or about["values"] != contender.values:
        raise UserError(f"{uri}: a run of other settings or faces; remove it, and it is trained again")
    return Run(seed, about["log"], Calibration.from_card(about["calibration"]), ages, tensors)
