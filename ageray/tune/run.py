"""A whole search, from a checked space to a report and a bundle.

    space -> trials.jsonl -> finalists/*.safetensors -> report.json, report.html, bundle/

Faces are decoded once. Trials run under successive halving, the best are trained again, the winner
becomes a bundle. What has a record is not done again: a killed search continues, with the proposals
that it would have made.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ageray import storage
from ageray.config import ParsedConfig
from ageray.data import protocols, splits
from ageray.data.labelled_faces import faces_digest, labelled_faces
from ageray.data.splits import Split
from ageray.errors import UserError
from ageray.models.build import build
from ageray.storage.lease import Lease
from ageray.train.in_memory import frozen
from ageray.train.in_memory.face_cache import (
    FaceCache,
    cache_faces,
    cache_features,
    store_room,
    stream_features,
)
from ageray.train.in_memory.slots import TaskSlots, plan_slots
from ageray.train.in_memory.train import Fold
from ageray.tune import results, tuner, winner
from ageray.tune.finalists import contenders, retrain
from ageray.tune.page import search_report
from ageray.tune.searcher import Show
from ageray.tune.space import Space, check
from ageray.tune.trials import TrialFile, search_digest

# settings that may be searched although features are precomputed: those of the head
_HEAD_SETTINGS = (
    "model.dropout",
    "model.decode.",
    "model.embedding",
    "model.ages.",
    "model.classifier",
    "train.augment.flip",
)


@dataclass(frozen=True)
class Plan:
    """A search that can start."""

    space: Space
    file: TrialFile
    labelled: pa.Table
    split: Split


def make(written: ParsedConfig, out: str | None = None, resume: bool = False) -> Plan:
    """Checks all that can be checked without a cluster, and opens the search folder.

    The folder is `out`, or one in `scale.runs` named after the search. Raises UserError for a
    space, a metric or faces that do not allow a search, and for a folder that has another search.
    """
    space = check(written)
    labelled, split = _faces(space)
    experiment = written.experiment
    name = f"tune-{experiment.model.name}-{experiment.data.name}-{search_digest(experiment)}"
    folder = storage.absolute(out.rstrip("/") if out else storage.join(experiment.scale.runs, name))
    file = TrialFile.of(folder, experiment, faces_digest(experiment, labelled, ()), resume)
    splits.save(file.files.split, split.parts)
    return Plan(space, file, labelled, split)


def _faces(space: Space) -> tuple[pa.Table, Split]:
    """The labelled faces and their split. Raises UserError if they do not allow a search."""
    experiment = space.written.experiment
    if experiment.data.shards is None:
        raise UserError(
            "data.shards is not set; name the folder that ageray prepare wrote, "
            "e.g. data.shards=shards/utkface"
        )
    if experiment.scale.workers != 1:
        raise UserError(
            f"scale.workers={experiment.scale.workers}: a trial trains on one worker; "
            "set scale.workers=1 and raise tune.at_once"
        )
    for number, stage in enumerate(experiment.train.stages):
        if stage.shards:
            raise UserError(
                f"train.stages.{number}.shards={stage.shards}: a trial trains on data.shards alone; "
                "train this stage once with ageray train and give its bundle/model.safetensors "
                "as model.weights"
            )
    labelled = labelled_faces(experiment.data.shards)
    split = protocols.split(labelled, experiment.protocol)
    for part, why in (("val", "trials are judged by them"), ("test", "finalists are compared on them")):
        if not split.parts[part]:
            raise UserError(
                f"protocol.{part}: leaves no {part} faces, and {why}; "
                "raise it, or set protocol.name=subject_exclusive"
            )
    count, batch_size = len(split.parts["train"]), space.largest("train.batch_size")
    if count < batch_size:
        raise UserError(
            f"train.batch_size={batch_size}: there are only {count} training faces; lower it or add faces"
        )
    return labelled, split


def search(plan: Plan, show: Show) -> dict[str, Any]:
    """Searches on the connected cluster; writes the report and the winner's bundle, returns the
    report.

    show: receives records of `kind` "start", "epoch", "trial", "finalists" and "finalist" as they
    come. Raises UserError if the cluster lacks what `scale` asks for, every trial failed, or
    another search writes to the folder.
    """
    with Lease(plan.file.folder, "search"):
        return _search(plan, show)


def _search(plan: Plan, show: Show) -> dict[str, Any]:
    space, file = plan.space, plan.file
    experiment, settings = space.written.experiment, space.tune
    at_once = settings.at_once or experiment.scale.parallel_trainings
    slots = plan_slots(experiment.scale.model_copy(update={"parallel_trainings": at_once}))
    trials = file.read()
    cache, precomputed = _cache(space, splits.used_faces(plan.labelled, [plan.split]), slots)
    fold = Fold("search", **cache.rows(plan.split.parts))
    start = {
        "kind": "start",
        "done": len(trials),
        "total": settings.trials,
        "frozen_body": precomputed,
        **slots._asdict(),
        "notes": space.notes,
    }
    show(start)
    tuner.run(space, cache.columns, fold, slots, file, trials, show)
    _check_trials(space, trials)
    chosen = contenders(space, trials)
    runs = retrain(space, chosen, cache.columns, fold, slots, file, show)
    report = results.report(plan.labelled, plan.split, cache, fold, space, trials, chosen, runs)
    best = report["winner"]
    run = winner.best_run(runs[best["name"]], settings.metric)
    ages_V = cache.column("age", fold.val)
    winner.save(file.files.bundle, space, best["values"], run, ages_V, report["training"], best)
    search_report(file.folder, report)
    storage.write_text(file.files.report, json.dumps(report, indent=1) + "\n")
    return report


def _check_trials(space: Space, trials: list[Any]) -> None:
    """Raises UserError if no trial has a score."""
    if any(trial.score is not None for trial in trials):
        return
    reason = f"tune.minutes={space.tune.minutes:g} is over before the first ended; raise it"
    if trials:
        reason = trials[0].reason
    raise UserError(f"no trial came to an end: {reason}")


def _cache(space: Space, faces: pa.Table, slots: TaskSlots) -> tuple[FaceCache, bool]:
    """The faces in memory, and whether a frozen backbone's features take the place of their pixels.

    Raises UserError if neither fits.
    """
    experiment = space.written.experiment
    network = build(experiment.model, pretrained=False)
    is_frozen = _keeps_backbone(space) and frozen.applies(experiment, network)
    if is_frozen:
        room = store_room(experiment, faces.num_rows)
        if not room.fits and room.features_bytes(experiment, network) is not None:
            return stream_features(experiment, faces, network, slots), True
    cache = cache_faces(experiment, faces)
    if is_frozen:
        cache_features(experiment, network, cache, slots)
    return cache, is_frozen


def _keeps_backbone(space: Space) -> bool:
    """Whether no trial changes what the backbone gives for a face."""
    for path in space.ranges:
        touches_network = path.startswith(("model.", "train.augment.", "train.precision"))
        if (touches_network or path.endswith("body_lr")) and not path.startswith(_HEAD_SETTINGS):
            return False
    return True
