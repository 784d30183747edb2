"""The audit of an evaluation: the tested faces against those that the model was trained on, wherever these are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ageray import storage
from ageray.audit import Audit, audit
from ageray.audit.conflicts import EXAMPLES
from ageray.audit.fingerprint_table import load_or_compute_fingerprints
from ageray.bundle import Bundle
from ageray.data import protocols, splits
from ageray.data.labelled_faces import labelled_faces
from ageray.data.splits import train_digest
from ageray.errors import UserError
from ageray.experiment import Experiment
from ageray.train.plan import SPLIT


class Training(NamedTuple):
    """What trained the model: its faces (validation too, which chose the epoch), where their shards are, and how to call that."""

    faces: pa.Table
    shards: str
    name: str


def training_side(
    model: str,
    loaded: Bundle,
    experiment: Experiment,
    faces: pa.Table,
    parts: dict[str, list[str]],
    given: str | None,
) -> Training | str:
    """The faces that trained the model, or why they cannot be known.

    Of the same set: the parts `train` and `val` of this split. Of another: those of the run's own split in `given`, else in the shards that
    the model's settings name, if they are at hand; all faces there where the run's split is not known. Raises UserError if `given`
    holds no shards.
    """
    trained = loaded.card.get("training", {})
    if trained.get("data") == experiment.data.name and given is None:
        seen = _only(faces, parts["train"] + parts["val"])
        if seen.num_rows:
            return Training(
                seen, str(experiment.data.shards), f"the {seen.num_rows:,} faces of this set that do not test"
            )
        return "no face of this set is left for training under this protocol: the audit has nothing to compare with"
    shards = given or _at_hand(loaded.experiment.data.shards)
    if shards is None:
        return f"the model was trained on '{trained.get('data')}', whose shards are not at hand; name them with --trained-on DIR"
    rows = labelled_faces(shards)
    keys = _trained_keys(model, loaded, rows)
    if keys is None:
        return Training(
            rows, shards, f"all {rows.num_rows:,} faces of {shards}, for the model's own split is not known"
        )
    seen = _only(rows, keys)
    return Training(
        seen,
        shards,
        f"the {seen.num_rows:,} faces of '{trained.get('data')}' that trained and chose the model",
    )


def audited(training: Training | str, faces: pa.Table, tested: list[str], shards: str) -> dict[str, Any]:
    """The report's `audit`. Needs a connected cluster."""
    if isinstance(training, str):
        return {"against": None, "lines": [training]}
    seen = _with_prints(training.faces, training.shards)
    found = audit(seen, _with_prints(_only(faces, tested), shards))
    return {"against": training.name, "lines": found.lines(), **found.to_dict()}


def audit_split(folders: Sequence[str], split: str) -> dict[str, Any] | None:
    """The audit of the saved `split` of a training run on these folders of shards, as in a report; None where nothing is held out for the
    test."""
    parts = splits.load(split)
    if not parts["test"] or not parts["train"]:
        return None
    faces = pa.concat_tables([_with_prints(labelled_faces(shards), shards) for shards in folders])
    found = audit(_only(faces, parts["train"] + parts["val"]), _only(faces, parts["test"]))
    return {"against": "training and validation", "lines": found.lines(), **found.to_dict()}


def audit_folds(faces: pa.Table, folds: Sequence[dict[str, list[str]]], shards: str) -> dict[str, Any]:
    """The report's `audit` of a model trained for each fold: the folds' counts summed, their floors averaged over the test images.

    `train` and `test` of what is counted within a part are those of the whole set, as are conflicts and histograms. Needs a connected cluster.
    """
    printed = _with_prints(faces, shards)
    found = [
        audit(_only(printed, parts["train"] + parts["val"]), _only(printed, parts["test"])) for parts in folds
    ]
    weights = [each.images["test"] for each in found]
    total, whole = sum(weights), audit(printed, printed)

    def summed(part: str, name: str) -> dict[str, Any]:
        counts = [getattr(each, part)[name] for each in found]
        known = None not in counts
        return {name: sum(counts) if known else None, "share": sum(counts) / total if known else None}

    def averaged(part: str) -> dict[str, float | None]:
        means = [getattr(each, part)["mae"] for each in found]
        return {
            "mae": float(np.average([mean for mean in means if mean is not None], weights=weights))
            if None not in means
            else None
        }

    people = {name: whole.subjects[name] for name in ("train", "test", "unknown_train", "unknown_test")}
    medians = [median for each in found if (median := each.constant["median"]) is not None]
    both = replace(
        whole,
        images={"train": round(np.mean([each.images["train"] for each in found])), "test": total},
        subjects={**people, **summed("subjects", "shared")},
        byte_identical={**whole.byte_identical, **summed("byte_identical", "across")},
        near_identical={
            **whole.near_identical,
            **summed("near_identical", "across"),
            "examples": _examples(found),
        },
        leaked=summed("leaked", "images"),
        oracle=averaged("oracle"),
        conflicts=found[0].conflicts,  # of its training and test part together
        constant={"median": float(np.mean(medians)) if medians else None, **averaged("constant")},
    )
    against = f"each fold's own training and validation faces, {both.images['train']:,} on average; counts are sums over {len(folds)} folds"
    return {"against": against, "lines": both.lines(), **both.to_dict()}


def _examples(found: Sequence[Audit]) -> list[Any]:
    return [pair for each in found for pair in each.near_identical["examples"]][:EXAMPLES]


def _at_hand(shards: str | None) -> str | None:
    """The shards that the model's settings name, if they are there."""
    try:
        return shards if shards and storage.list_files(shards, (".parquet",)) else None
    except UserError:
        return None


def _trained_keys(model: str, loaded: Bundle, rows: pa.Table) -> list[str] | None:
    """The keys of the model's training and validation parts: from its run folder, else dealt out again and checked by the card's digest."""
    kept = storage.join(storage.absolute(model), SPLIT)
    if not model.startswith("zoo:") and storage.exists(kept):
        parts = splits.load(kept)
        return parts["train"] + parts["val"]
    try:
        parts = protocols.split(rows, loaded.experiment.protocol).parts
    except UserError:
        return None
    if train_digest(parts["train"]) != loaded.card.get("training", {}).get("train_digest"):
        return None
    return parts["train"] + parts["val"]


def _only(faces: pa.Table, keys: list[str]) -> pa.Table:
    return faces.filter(pc.is_in(faces.column("key"), value_set=pa.array(keys, pa.string())))


def _with_prints(faces: pa.Table, shards: str) -> pa.Table:
    prints = load_or_compute_fingerprints(shards)
    rows = prints.take(pc.index_in(faces.column("key"), value_set=prints.column("key")))
    for name in prints.column_names[1:]:
        faces = faces.append_column(name, rows.column(name))
    return faces
