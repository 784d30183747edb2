"""A whole search: the space is checked, faces are decoded once, trials run under successive halving, finalists are trained again, the winner is a
bundle, and a page tells all.

    space -> trials.jsonl -> finalists/*.safetensors -> report.json, report.html, bundle/

What has a record is not done again: a killed search goes on where it was, with the proposals it would have made.
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
from ageray.train.in_memory.face_cache import FaceCache, hold, remember
from ageray.train.in_memory.slots import Share, share_out
from ageray.train.in_memory.train import Fold
from ageray.tune import results, tuner, winner
from ageray.tune.finalists import contenders, retrain
from ageray.tune.page import search_report
from ageray.tune.searcher import Show
from ageray.tune.space import Space, check
from ageray.tune.trials import TrialFile, search_digest

REPORT, SPLIT = "report.json", "split.parquet"


@dataclass(frozen=True)
class Plan:
    """A search that can start."""

    space: Space
    file: TrialFile
    labelled: pa.Table
    split: Split


def make(written: ParsedConfig, out: str | None = None, resume: bool = False) -> Plan:
    """Checks all that can be checked before a cluster is touched, and opens the search's folder: `out`, or one of `scale.runs`.

    Raises UserError for a space, a metric or faces that do not allow a search, and for a folder that holds another one.
    """
    space = check(written)
    labelled, split = _faces(space)
    experiment = written.experiment
    name = f"tune-{experiment.model.name}-{experiment.data.name}-{search_digest(experiment)}"
    folder = storage.absolute(out.rstrip("/") if out else storage.join(experiment.scale.runs, name))
    file = TrialFile.of(folder, experiment, faces_digest(experiment, labelled, ()), resume)
    splits.save(storage.join(folder, SPLIT), split.parts)
    return Plan(space, file, labelled, split)


def _faces(space: Space) -> tuple[pa.Table, Split]:
    experiment = space.written.experiment
    if experiment.data.shards is None:
        raise UserError(
            "data.shards is not set; name the folder that jobs.prepare wrote, e.g. data.shards=shards/utkface"
        )
    if experiment.scale.workers != 1:
        raise UserError(
            f"scale.workers={experiment.scale.workers}: a trial trains on one worker; set scale.workers=1 and raise tune.at_once"
        )
    for number, stage in enumerate(experiment.train.stages):
        if stage.shards:
            raise UserError(
                f"train.stages.{number}.shards={stage.shards}: a trial trains on data.shards alone; train this stage once with jobs.train and "
                f"give its bundle/model.safetensors as model.weights"
            )
    labelled = labelled_faces(experiment.data.shards)
    split = protocols.split(labelled, experiment.protocol)
    for part, why in (("val", "trials are judged by them"), ("test", "finalists are compared on them")):
        if not split.parts[part]:
            raise UserError(
                f"protocol.{part}: leaves no {part} faces, and {why}; raise it, or set protocol.name=subject_exclusive"
            )
    if len(split.parts["train"]) < experiment.train.batch_size:
        raise UserError(
            f"train.batch_size={experiment.train.batch_size}: there are only {len(split.parts['train'])} training faces; lower it or add faces"
        )
    return labelled, split


def search(plan: Plan, show: Show) -> dict[str, Any]:
    """Searches on the connected cluster and returns the report, which is then in the folder with the winner's bundle.

    show: receives records of `kind` "start", "epoch", "trial", "finalists" and "finalist" as they come.
    Raises UserError if the cluster lacks what `scale` asks for, or no trial came to an end.
    """
    space, file = plan.space, plan.file
    experiment, settings = space.written.experiment, space.tune
    share = share_out(
        experiment.scale.model_copy(
            update={"fold_workers": settings.at_once or experiment.scale.fold_workers}
        )
    )
    tried = file.read()
    held = hold(experiment, plan.labelled)
    remembered = _remember(space, held, share)
    fold = Fold("search", **held.rows(plan.split.parts))
    at_once = share._asdict()
    show(
        {
            "kind": "start",
            "done": len(tried),
            "total": settings.trials,
            "frozen_body": remembered,
            **at_once,
            "notes": space.notes,
        }
    )
    tuner.run(space, held.columns, fold, share, file, tried, show)
    if not any(trial.score is not None for trial in tried):
        reason = (
            tried[0].reason
            if tried
            else f"tune.minutes={settings.minutes:g} is over before the first ended; raise it"
        )
        raise UserError(f"no trial came to an end: {reason}")
    chosen = contenders(space, tried)
    runs = retrain(space, chosen, held.columns, fold, share, file, show)
    found = results.report(plan.labelled, plan.split, held, fold, space, tried, chosen, runs)
    best = next(one for one in chosen if one.name == found["winner"]["name"])
    run = winner.closest(runs[best.name], settings.metric)
    winner.save(
        file.folder, space, best.values, run, held.column("age", fold.val), found["training"], found["winner"]
    )
    search_report(file.folder, found)
    storage.write_text(storage.join(file.folder, REPORT), json.dumps(found, indent=1) + "\n")
    return found


def _remember(space: Space, held: FaceCache, share: Share) -> bool:
    """Puts features in the place of pixels where no trial moves or changes the body; whether it did."""
    experiment = space.written.experiment
    changes = [
        path
        for path in space.ranges
        if path.startswith(("model.", "train.augment.", "train.precision")) or path.endswith("body_lr")
    ]
    harmless = (
        "model.dropout",
        "model.decode.",
        "model.embedding",
        "model.ages.",
        "model.classifier",
        "train.augment.flip",
    )
    if any(not path.startswith(harmless) for path in changes):
        return False
    return remember(experiment, build(experiment.model, pretrained=False), held, share)
