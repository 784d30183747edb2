"""Every fold of a protocol, trained and tested as parallel Ray tasks.

    face shards -> canvases in the object store, once
        -> (if no stage trains the backbone: its features, once)
        -> one task per fold -> OUT/folds/0007.parquet as it ends

A finished fold is not trained again. A run that was killed continues where it was, and its results
equal those of an uninterrupted run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ageray import storage
from ageray.data import protocols
from ageray.data.labelled_faces import faces_digest, labelled_faces
from ageray.data.labels import gender_number
from ageray.data.splits import Split
from ageray.errors import UserError
from ageray.evaluate import pretraining, results, split_audit
from ageray.evaluate.files import EvaluationFiles
from ageray.evaluate.fold_store import FoldStore
from ageray.evaluate.fold_tasks import FoldTasks, Record
from ageray.evaluate.one_model import write
from ageray.evaluate.predictions import LEVELS
from ageray.evaluate.results import with_labels
from ageray.experiment import Experiment, Protocol
from ageray.models.build import build
from ageray.storage.lease import Lease
from ageray.train.in_memory.face_cache import FaceCaches
from ageray.train.plan import check_model, notes


class FoldRun(NamedTuple):
    """What a run over folds gives.

    rows           a row per face and fold that tests it, sorted by key: the columns of
                   `ageray.evaluate.predictions` (intervals and quantiles calibrated on the fold's
                   own validation part), the labels, and `fold`: the person left out or the fold's
                   number
    faces          the labelled faces
    splits         the split of each fold
    notes          what the splits leak
    train_median   mean over folds of the median age of the training faces
    gallery        None, or as a bundle's card describes it, with the mean number of faces
    """

    rows: pa.Table
    faces: pa.Table
    splits: list[Split]
    notes: list[str]
    train_median: float
    gallery: dict[str, Any] | None


class _Plan(NamedTuple):
    """The labelled faces, and name, protocol and split of every fold."""

    faces: pa.Table
    names: list[str]
    protocols: list[Protocol]
    splits: list[Split]


def evaluate_folds(
    experiment: Experiment,
    out: str,
    show: Callable[[dict[str, Any]], None],
    fresh: bool = False,
    caches: FaceCaches | None = None,
) -> dict[str, Any]:
    """Trains and tests every fold of `experiment.protocol` (see `run_folds`); returns the report.

    Writes report.html, report.json and predictions.parquet to `out`. The floors are those of always
    answering the mean of the folds' training medians. The audit counts, over all folds, the test
    images that the fold's own training part shares a person or picture with. Finished folds in
    `out` are not trained again, unless `fresh`. Needs a connected cluster.
    Raises UserError as `run_folds` does.
    """
    run = run_folds(experiment, out, show, fresh, caches=caches)
    model = results.Model(
        name=f"{experiment.model.name}, trained for each fold",
        network=experiment.model.name,
        identity=None,
        training_median=run.train_median,
        classifiers=build(experiment.model, pretrained=False).classifier_names,
        gallery=run.gallery,
        exclude_subject=experiment.model.decode.gallery.exclude_subject,
        card=None,
    )
    report = results.build(
        run.rows,
        model=model,
        data=experiment.data,
        protocol={**experiment.protocol.model_dump(), "folds_run": len(run.splits)},
        notes=run.notes,
        warnings=[],
        audit=split_audit.audit_folds(run.faces, run.splits, str(experiment.data.shards)),
    )
    files = EvaluationFiles.at(out)
    storage.make_folder(files.folder)
    write(files, run.rows, report, None)
    return report


def run_folds(
    experiment: Experiment,
    out: str,
    show: Callable[[Record], None],
    fresh: bool = False,
    levels: Sequence[float] = LEVELS,
    caches: FaceCaches | None = None,
) -> FoldRun:
    """Trains and tests every fold of `experiment.protocol` on `experiment.data`.

    Stages with shards of their own that come first are trained once, and every fold starts from
    their weights. Only faces that a fold uses are held in memory; if they do not fit, each fold is
    trained by the streaming loop of `jobs.train`, one after the other. caches: faces that several
    calls share.

    Every fold starts from `train.seed`. The results depend neither on how many folds run at once
    nor on the order in which they end; the number of threads changes the rounding. show: receives a
    record when the folds start (`kind` "start") and one for each that ends ("fold"). `fresh`
    deletes finished folds in `out`. Needs a connected cluster.
    Raises UserError if the faces, the settings or the folder do not allow it, another run writes to
    the folder, or a fold's loss is not finite; finished folds stay on disk.
    """
    all_folds = experiment.protocol.model_copy(update={"fold": 0})
    experiment = experiment.model_copy(update={"protocol": all_folds})
    plan = _plan(experiment)
    written, experiment = experiment, pretraining.run(experiment, show)
    identity = faces_digest(experiment, plan.faces, levels)
    with Lease(EvaluationFiles.at(out).folder, "evaluation"):
        store = FoldStore.open(out, written, identity, fresh)
        tables = _all_tables(experiment, plan, store, levels, show, caches)
    parts = [table.replace_schema_metadata(None) for table in tables]
    whole = pa.concat_tables(parts, promote_options="default")  # folds of before lack later columns
    return FoldRun(
        rows=with_labels(whole, plan.faces).sort_by([("key", "ascending"), ("fold", "ascending")]),
        faces=plan.faces,
        splits=plan.splits,
        notes=[*_notes(plan.splits), *_notes_on_training(experiment, plan)],
        train_median=_train_median(plan.faces, plan.splits),
        gallery=_gallery(experiment, plan.faces, plan.splits),
    )


def _all_tables(
    experiment: Experiment,
    plan: _Plan,
    store: FoldStore,
    levels: Sequence[float],
    show: Callable[[Record], None],
    caches: FaceCaches | None,
) -> list[pa.Table]:
    """The table of every fold, in their order: from the store, or trained now and stored."""
    total = len(plan.names)
    tables, todo = [], []
    for number in range(total):
        table = store.read(number)
        tables.append(table)
        if table is None:
            todo.append(number)
    if not todo:
        return tables
    tasks = FoldTasks(experiment, plan.faces, plan.protocols, plan.splits, plan.names, levels, caches)
    done = total - len(todo)
    with closing(tasks.results(todo, show, store.files.runs)) as ended:
        for number, table, about in ended:
            store.write(number, table, about)
            tables[number] = store.read(number)  # exactly as a later run will read it
            done += 1
            show({"kind": "fold", "done": done, "total": total, "fold": plan.names[number], **about})
    return tables


# --- which folds ----------------------------------------------------------------------------------


def _plan(experiment: Experiment) -> _Plan:
    """Plans the folds. Raises UserError for mistakes that can be seen before a cluster is
    needed."""
    shards = experiment.data.shards
    if shards is None:
        raise UserError(
            "data.shards is not set; name the folder that ageray prepare wrote, e.g. data.shards=shards/fgnet"
        )
    pretraining.check(experiment)
    check_model(experiment)
    faces, name = labelled_faces(shards), experiment.protocol.name
    numbers, splits = [], []
    protocols_of_folds = protocols.folds(faces, experiment.protocol)
    for protocol in protocols_of_folds:
        numbers.append(str(protocol.fold))
        splits.append(protocols.split(faces, protocol))
    for split in splits:
        if not split.parts["train"] or not split.parts["test"]:
            purpose = "test" if split.parts["train"] else "train on"
            raise UserError(
                f"protocol.name={name}: leaves no face to {purpose}; "
                f"set protocol.name=lopo, or subject_exclusive with protocol.folds=5, say"
            )
    names = _people(faces, splits) if name == "lopo" else numbers
    return _Plan(faces, names, protocols_of_folds, splits)


def _notes_on_training(experiment: Experiment, plan: _Plan) -> list[str]:
    """What the settings ask for and the faces do not have, as in the first fold."""
    parts = plan.splits[0].parts
    chosen = pc.is_in(plan.faces.column("key"), pa.array(parts["train"], pa.string()))
    return notes(experiment, plan.faces.filter(chosen), len(parts["val"]))


def _people(faces: pa.Table, splits: list[Split]) -> list[str]:
    """The subject that each fold leaves out; `set/subject` if several sets use the same name."""
    keys = pa.array([split.parts["test"][0] for split in splits], pa.string())
    people = faces.take(pc.index_in(keys, value_set=faces.column("key")))
    subjects, datasets = people.column("subject").to_pylist(), people.column("dataset").to_pylist()
    counts, names = Counter(subjects), []
    for subject, dataset in zip(subjects, datasets, strict=True):
        names.append(subject if counts[subject] == 1 else f"{dataset}/{subject}")
    return names


def _notes(splits: list[Split]) -> list[str]:
    """The notes that all splits have, and one of the others as an example."""
    counts: Counter[str] = Counter()
    for split in splits:
        counts.update(split.notes)
    common, others = [], []
    for note, times in counts.items():
        if note.startswith("lopo: tests subject"):
            continue  # the folds' names say it
        if times == len(splits):
            common.append(note)
        else:
            others.append(note)
    if others:
        common.append(f"in one of {len(splits)} folds, others being alike: {others[0]}")
    return common


def _train_median(faces: pa.Table, splits: list[Split]) -> float:
    """Mean over folds of the median age of the training faces."""
    ages = dict(zip(faces.column("key").to_pylist(), faces.column("age").to_pylist(), strict=True))
    medians = []
    for split in splits:
        medians.append(np.median([ages[key] for key in split.parts["train"]]))
    return float(np.mean(medians))


def _gallery(experiment: Experiment, faces: pa.Table, splits: list[Split]) -> dict[str, Any] | None:
    """As `ageray.bundle.save` describes a gallery in a card; None for other models."""
    if experiment.model.decode.method != "gallery":
        return None
    gender_by = None
    if max(map(gender_number, faces.column("gender").to_pylist())) >= 0:
        gender_by = "embedding"
        trained = experiment.loss.gender_contrastive is not None
        if trained and "gender_embedding" in build(experiment.model, pretrained=False).outputs:
            gender_by = "gender_embedding"
    sizes = [len(split.parts["train"]) for split in splits]
    return {"faces": round(np.mean(sizes)), "gender_by": gender_by}
