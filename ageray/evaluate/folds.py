"""Every fold of a protocol, trained and tested as parallel Ray tasks: all faces are decoded once, and each task trains on its share of the machine.

    face shards -> canvases in the object store, once -> (a frozen body's features, once) -> a task a fold -> OUT/folds/0007.parquet as it ends

What has a file is not trained again: a killed run goes on where it was, and ends as if nothing had happened.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import pyarrow as pa

from ageray import storage
from ageray.data import protocols
from ageray.data.labelled_faces import faces_digest, labelled_faces
from ageray.data.splits import Split
from ageray.data.stream import gender_number
from ageray.errors import UserError
from ageray.evaluate import results, split_audit
from ageray.evaluate.fold_store import FoldFiles
from ageray.evaluate.fold_tasks import Record, Work
from ageray.evaluate.one_model import write
from ageray.evaluate.predictions import LEVELS
from ageray.evaluate.results import with_labels
from ageray.experiment import Experiment
from ageray.models.build import build
from ageray.train.plan import check_model


def evaluate_folds(
    experiment: Experiment, out: str, show: Callable[[dict[str, Any]], None], fresh: bool = False
) -> dict[str, Any]:
    """Trains and tests every fold of `experiment.protocol` (see `run_folds`) and writes report.html, report.json and predictions.parquet to `out`;
    returns the report.

    The floors are those of always saying the mean of the folds' training medians. The audit counts, over all folds, test images that the
    fold's own training part knows. Finished folds in `out` are not trained again, unless `fresh`. Needs a connected cluster.
    Raises UserError as `run_folds` does.
    """
    rows = run_folds(experiment, out, show, fresh)
    facts = json.loads(rows.schema.metadata[b"ageray"])
    shards = str(experiment.data.shards)
    faces = labelled_faces(shards)
    splits = [protocols.split(faces, protocol) for protocol in protocols.folds(faces, experiment.protocol)]
    network = build(experiment.model, pretrained=False)
    decode = experiment.model.decode
    nearest = (
        results.nearest(rows, facts["gallery"], decode.gallery.exclude_subject)
        if decode.method == "gallery"
        else {}
    )
    made = {
        "model": {
            "name": f"{experiment.model.name}, trained for each fold",
            "network": experiment.model.name,
            "identity": None,
        },
        "data": {"name": experiment.data.name, "shards": shards, "landmarks": experiment.data.landmarks},
        "protocol": {**experiment.protocol.model_dump(), "folds_run": facts["folds"]},
        "notes": facts["notes"],
        "warnings": [],
        "levels": list(LEVELS),
        **results.figures(rows, LEVELS, facts["train_median"]),
        **results.classifiers(rows, list(network.classifier_names)),
        **nearest,
        "audit": split_audit.audit_folds(faces, [split.parts for split in splits], shards),
        "unusable": results.unusable(rows),
        "card": None,
    }
    storage.make_folder(out)
    write(out, rows.replace_schema_metadata(None), made, None)
    return made


def run_folds(
    experiment: Experiment,
    out: str,
    show: Callable[[Record], None],
    fresh: bool = False,
    levels: Sequence[float] = LEVELS,
) -> pa.Table:
    """Trains and tests every fold of `experiment.protocol` on `experiment.data` and returns what their models say of the faces they did not see.

    The table has a row a face and fold that tests it, sorted by key: the columns of `ageray.evaluate.predictions` (intervals and quantiles
    calibrated on the fold's own validation part), the labels, and `fold`, the name of the person left out or the fold's number. Its metadata
    `ageray` is JSON with `folds`, how many, `notes`, `train_median`, the mean over folds of the training faces' median age, and `gallery`: null, or
    what a bundle's card says of one, with the mean number of faces.

    Every fold starts from `train.seed`. How many run at once, and in which order they end, changes nothing; how many threads one has, the
    rounding. show: receives a record when the folds start (`kind` "start") and one for each that ends ("fold").
    `fresh` forgets finished folds in `out`. Needs a connected cluster.
    Raises UserError if the faces, the settings or the folder do not allow it, or a fold's loss is not finite; finished folds are kept.
    """
    experiment = experiment.model_copy(
        update={"protocol": experiment.protocol.model_copy(update={"fold": 0})}
    )  # all of them
    labelled, planned, splits = _planned(experiment)
    files = FoldFiles.of(out, experiment, faces_digest(experiment, labelled, levels), fresh)
    tables = {number: table for number in range(len(planned)) if (table := files.read(number)) is not None}
    todo = [number for number in range(len(planned)) if number not in tables]
    if todo:
        with closing(Work(experiment, labelled, splits, planned, levels).results(todo, show)) as results:
            for number, table, about in results:
                files.write(number, table, about)
                tables[number] = files.read(number)  # as a later run will find it
                show(
                    {
                        "kind": "fold",
                        "done": len(tables),
                        "total": len(planned),
                        "fold": planned[number],
                        **about,
                    }
                )
    whole = with_labels(
        pa.concat_tables([tables[number].replace_schema_metadata(None) for number in sorted(tables)]),
        labelled,
    )
    facts = {"folds": len(planned), "notes": _notes(splits), "train_median": _median(labelled, splits)}
    facts["gallery"] = _gallery(experiment, labelled, splits)
    return whole.sort_by([("key", "ascending"), ("fold", "ascending")]).replace_schema_metadata(
        {"ageray": json.dumps(facts)}
    )


# --- which folds ----------------------------------------------------------------------------------------------------


def _planned(experiment: Experiment) -> tuple[pa.Table, list[str], list[Split]]:
    """The labelled faces, and name and split of every fold. Raises UserError for what can be told before a cluster is needed."""
    shards = experiment.data.shards
    if shards is None:
        raise UserError(
            "data.shards is not set; name the folder that jobs.prepare wrote, e.g. data.shards=shards/fgnet"
        )
    for number, stage in enumerate(experiment.train.stages):
        if stage.shards:
            raise UserError(
                f"train.stages.{number}.shards={stage.shards}: a fold trains on data.shards alone; train this stage once with jobs.train and "
                f"give its bundle/model.safetensors as model.weights"
            )
    check_model(experiment)
    labelled = labelled_faces(shards)
    each = protocols.folds(labelled, experiment.protocol)
    splits = [protocols.split(labelled, protocol) for protocol in each]
    for split in splits:
        if not split.parts["train"] or not split.parts["test"]:
            raise UserError(
                f"protocol.name={experiment.protocol.name}: leaves no face to {'test' if split.parts['train'] else 'train on'}; "
                f"set protocol.name=lopo, or subject_exclusive with protocol.folds=5, say"
            )
    return (
        labelled,
        _names(
            labelled, [str(protocol.fold) for protocol in each], splits, experiment.protocol.name == "lopo"
        ),
        splits,
    )


def _names(labelled: pa.Table, numbers: list[str], splits: list[Split], people: bool) -> list[str]:
    """Numbers, or the people left out: by subject, with the data set where two sets have the same."""
    if not people:
        return numbers
    rows = zip(*(labelled.column(name).to_pylist() for name in ("key", "subject", "dataset")), strict=True)
    who = {key: (subject, f"{dataset}/{subject}") for key, subject, dataset in rows}
    found = [who[split.parts["test"][0]] for split in splits]
    often = Counter(subject for subject, _ in found)
    return [subject if often[subject] == 1 else full for subject, full in found]


def _notes(splits: list[Split]) -> list[str]:
    """What the splits leak: what all say once, else the first that says something, as an example."""
    said = Counter(
        note for split in splits for note in split.notes if not note.startswith("lopo: tests subject")
    )
    common = [note for note, times in said.items() if times == len(splits)]
    others = [note for note in said if note not in common]
    return common + ([f"in one of {len(splits)} folds, others being alike: {others[0]}"] if others else [])


def _median(labelled: pa.Table, splits: list[Split]) -> float:
    ages = dict(zip(labelled.column("key").to_pylist(), labelled.column("age").to_pylist(), strict=True))
    return float(np.mean([np.median([ages[key] for key in split.parts["train"]]) for split in splits]))


def _gallery(experiment: Experiment, labelled: pa.Table, splits: list[Split]) -> dict[str, Any] | None:
    """As `ageray.bundle.save` puts it into a card."""
    if experiment.model.decode.method != "gallery":
        return None
    known = any(gender_number(name) >= 0 for name in labelled.column("gender").to_pylist())
    by = "gender_embedding" if "gender_embedding" in check_model(experiment).outputs else "embedding"
    return {
        "faces": round(np.mean([len(split.parts["train"]) for split in splits])),
        "gender_by": by if known else None,
    }
