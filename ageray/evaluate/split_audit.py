"""The audit of an evaluation: the tested faces against those that the model was trained on.

Finds the training faces (in the same shards, or in others that the settings name), adds
fingerprints and gives the report's `audit`.
"""

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
from ageray.data.splits import Split, train_digest
from ageray.errors import UserError
from ageray.experiment import Experiment
from ageray.train.files import RunFiles


class Training(NamedTuple):
    """What trained a model.

    faces: training and validation faces (validation chose the epoch). shards: where they are.
    name: how the report calls them.
    """

    faces: pa.Table
    shards: str
    name: str


def training_side(
    model: str,
    loaded: Bundle,
    experiment: Experiment,
    faces: pa.Table,
    parts: dict[str, list[str]],
    trained_on: str | None,
) -> Training | str:
    """The faces that trained the model, or a sentence on why they are not known.

    If the model was trained on the set that is tested: the parts `train` and `val` of this split.
    If on another set: the faces of the run's own split in the shards `trained_on`, or else in those
    that the model's settings name, if they are there; all faces of these shards where the run's
    split is not known. Raises UserError if there are no shards in `trained_on`.
    """
    training = loaded.card.get("training", {})
    if training.get("data") == experiment.data.name and trained_on is None:
        same = _only(faces, parts["train"] + parts["val"])
        if same.num_rows:
            name = f"the {same.num_rows:,} faces of this set that do not test"
            return Training(same, str(experiment.data.shards), name)
        return (
            "no face of this set is left for training under this protocol: the audit has nothing to "
            "compare with"
        )
    shards = trained_on or _if_there(loaded.experiment.data.shards)
    if shards is None:
        return (
            f"the model was trained on '{training.get('data')}', whose shards are not at hand; "
            f"name them with --trained-on DIR"
        )
    rows = labelled_faces(shards, "--trained-on " if trained_on else "data.shards=")
    keys = _trained_keys(model, loaded, rows)
    if keys is None:
        name = f"all {rows.num_rows:,} faces of {shards}, for the model's own split is not known"
        return Training(rows, shards, name)
    trained = _only(rows, keys)
    name = f"the {trained.num_rows:,} faces of '{training.get('data')}' that trained and chose the model"
    return Training(trained, shards, name)


def audited(training: Training | str, faces: pa.Table, tested: list[str], shards: str) -> dict[str, Any]:
    """The report's `audit` of the faces `tested` (keys) of `shards`. Needs a connected cluster."""
    if isinstance(training, str):
        return {"against": None, "lines": [training]}
    trained = _with_fingerprints(training.faces, training.shards)
    findings = audit(trained, _with_fingerprints(_only(faces, tested), shards))
    return {"against": training.name, "lines": findings.lines(), **findings.to_dict()}


def audit_split(folders: Sequence[str], split: str) -> dict[str, Any] | None:
    """The audit of the saved `split` of a training run on these folders of shards, as in a report;
    None without a test part."""
    parts = splits.load(split)
    if not parts["test"] or not parts["train"]:
        return None
    tables = []
    for shards in folders:
        tables.append(_with_fingerprints(labelled_faces(shards), shards))
    faces = pa.concat_tables(tables)
    findings = audit(_only(faces, parts["train"] + parts["val"]), _only(faces, parts["test"]))
    return {"against": "training and validation", "lines": findings.lines(), **findings.to_dict()}


def audit_folds(faces: pa.Table, folds: Sequence[Split], shards: str) -> dict[str, Any]:
    """The report's `audit` of a model trained for each fold.

    folds: the split of each fold. Counts across the split are summed over the folds, floors
    are averaged over the test images. Counts within one part (`train` and `test`), conflicts and
    histograms are those of the whole set. Needs a connected cluster.
    """
    faces = _with_fingerprints(faces, shards)
    findings, train_images, test_images = [], [], []
    for split in folds:
        trained, tested = (
            _only(faces, split.parts["train"] + split.parts["val"]),
            _only(faces, split.parts["test"]),
        )
        findings.append(audit(trained, tested))
        train_images.append(trained.num_rows)
        test_images.append(tested.num_rows)
    both = _merged(findings, audit(faces, faces), round(np.mean(train_images)), sum(test_images))
    against = (
        f"each fold's own training and validation faces, {both.images['train']:,} on average; "
        f"counts are sums over {len(folds)} folds"
    )
    return {"against": against, "lines": both.lines(), **both.to_dict()}


def _merged(findings: Sequence[Audit], whole: Audit, train_images: int, test_images: int) -> Audit:
    """One audit of all folds; whole: the audit of the whole set against itself."""
    within_parts = ("train", "test", "unknown_train", "unknown_test")
    medians, examples = [], []
    for each in findings:
        examples += each.near_identical["examples"]
        if each.constant["median"] is not None:
            medians.append(each.constant["median"])
    return replace(
        whole,
        images={"train": train_images, "test": test_images},
        subjects={name: whole.subjects[name] for name in within_parts}
        | _summed(findings, "subjects", "shared", test_images),
        byte_identical=whole.byte_identical | _summed(findings, "byte_identical", "across", test_images),
        near_identical=whole.near_identical
        | _summed(findings, "near_identical", "across", test_images)
        | {"examples": examples[:EXAMPLES]},
        leaked=_summed(findings, "leaked", "images", test_images),
        oracle=_averaged(findings, "oracle"),
        conflicts=findings[0].conflicts,  # those of its training and test part together
        constant={"median": float(np.mean(medians)) if medians else None} | _averaged(findings, "constant"),
    )


def _summed(findings: Sequence[Audit], section: str, name: str, test_images: int) -> dict[str, Any]:
    """A count summed over the folds, and its share of the test images; null if a fold has none."""
    counts = [getattr(each, section)[name] for each in findings]
    if None in counts:
        return {name: None, "share": None}
    return {name: sum(counts), "share": sum(counts) / test_images}


def _averaged(findings: Sequence[Audit], section: str) -> dict[str, float | None]:
    """A floor averaged over the test images of all folds; null if a fold has none."""
    means = [getattr(each, section)["mae"] for each in findings]
    if None in means:
        return {"mae": None}
    return {"mae": float(np.average(means, weights=[each.images["test"] for each in findings]))}


def _if_there(shards: str | None) -> str | None:
    """The shards that the model's settings name, if they exist."""
    try:
        return shards if shards and storage.list_files(shards, (".parquet",)) else None
    except UserError:
        return None


def _trained_keys(model: str, loaded: Bundle, rows: pa.Table) -> list[str] | None:
    """The keys of the model's training and validation parts; None if they are not known.

    From the run folder's split, or else from the settings' split, if the card's digest confirms it.
    """
    run_split = RunFiles(storage.absolute(model)).split
    if not model.startswith("zoo:") and storage.exists(run_split):
        parts = splits.load(run_split)
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


def _with_fingerprints(faces: pa.Table, shards: str) -> pa.Table:
    """`faces` with the fingerprint columns of their shards."""
    table = load_or_compute_fingerprints(shards)
    rows = table.take(pc.index_in(faces.column("key"), value_set=table.column("key")))
    for name in table.column_names[1:]:
        faces = faces.append_column(name, rows.column(name))
    return faces
