"""Folds as Ray tasks: faces are decoded once into the object store, each fold gets a share of it.

Takes an experiment and the splits of its folds; yields the predictions of each fold as it ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch
from numpy.typing import NDArray
from ray.exceptions import RayTaskError

from ageray import config
from ageray.data.labels import gender_number
from ageray.data.splits import Split, used_faces
from ageray.errors import UserError
from ageray.evaluate import streamed_fold
from ageray.evaluate.predictions import CLASSIFIERS, NEAREST, PREDICTED
from ageray.experiment import Experiment, Protocol
from ageray.models.build import build
from ageray.train.in_memory import train
from ageray.train.in_memory.face_cache import FaceCache, FaceCaches, store_room
from ageray.train.in_memory.slots import on_device, plan_slots
from ageray.train.in_memory.train import Fold, Result

Record = dict[str, Any]
Ended = tuple[int, pa.Table, Record]
"""A fold's number, its predictions, and its figures (see `_figures`)."""


def _train_fold(
    experiment: Experiment, faces: dict[str, Any], fold: Fold, levels: Sequence[float], threads: int
) -> tuple[Result, float]:
    """A task: the fold's result, and the seconds it took."""
    start = time.perf_counter()
    with on_device(threads) as device:
        return train.run(experiment, faces, fold, device, levels), time.perf_counter() - start


class FoldTasks:
    """The folds of one experiment that are still to be trained.

    faces: the labelled faces. protocols, splits, names: of every fold. levels: of the quantiles.
    caches: faces in memory that other experiments share.
    """

    def __init__(
        self,
        experiment: Experiment,
        faces: pa.Table,
        protocols: list[Protocol],
        splits: list[Split],
        names: list[str],
        levels: Sequence[float],
        caches: FaceCaches | None = None,
    ) -> None:
        self._experiment = experiment
        self._labelled, self._protocols, self._splits, self._names = faces, protocols, splits, names
        self._caches = caches or FaceCaches()
        self._levels = tuple(levels)
        self._slots = plan_slots(experiment.scale)
        self._network = build(experiment.model, pretrained=False)

    def results(
        self, todo: list[int], show: Callable[[Record], None], runs: str
    ) -> Generator[Ended, None, None]:
        """Trains the folds `todo`; yields each as it ends. Running tasks stop when the caller
        stops.

        Only the faces of these folds are decoded. If they do not fit into memory, the features of a
        frozen backbone take their place. If these do not fit either, or the backbone trains, each
        fold is a training run in the folder `runs`, one after the other.
        """
        used = used_faces(self._labelled, [self._splits[number] for number in todo])
        room = store_room(self._experiment, used.num_rows)
        features_bytes = room.features_bytes(self._experiment, self._network)
        way = "streamed from the shards in each epoch, fold after fold"
        if room.fits:
            way = "held in memory"
        elif features_bytes is not None:
            megabytes = f"{features_bytes / 2**20:,.0f} MiB"
            way = f"the frozen backbone's features, {megabytes}, are computed once and held in their place"
        others = self._labelled.num_rows - used.num_rows
        show({"kind": "note", "text": f"{room.text}: {way}; {others:,} faces that no fold uses are left out"})
        if room.fits:
            faces = self._caches.faces(self._experiment, used)
        elif features_bytes is not None:
            faces = self._caches.streamed_features(self._experiment, used, self._network, self._slots)
        else:
            yield from self._streamed(todo, show, runs)
            return
        folds = {number: self._fold(number, faces) for number in todo}
        precomputed = not room.fits
        if room.fits:
            precomputed = self._caches.features(self._experiment, self._network, faces, self._slots)
        total = len(self._splits)
        record = {"kind": "start", "done": total - len(todo), "total": total, "frozen_body": precomputed}
        show(record | self._slots._asdict())
        for number, fold in list(folds.items()):
            if len(fold.test) == 0:  # no usable face to test, nothing to train
                del folds[number]
                table = self._table(number, fold, None, faces)
                yield number, table, {**_figures(table, None), "seconds": 0.0, "left": None}
        start = time.perf_counter()
        for ended, (number, result, seconds) in enumerate(self._trained(folds, faces.columns), 1):
            table = self._table(number, folds[number], result, faces)
            seconds_left = (time.perf_counter() - start) / ended * (len(folds) - ended)
            yield number, table, {**_figures(table, result), "seconds": seconds, "left": seconds_left}

    def _streamed(
        self, todo: list[int], show: Callable[[Record], None], runs: str
    ) -> Generator[Ended, None, None]:
        """The folds as training runs on Ray Data, in the folder `runs`."""
        total, start = len(self._splits), time.perf_counter()
        record = {"kind": "start", "done": total - len(todo), "total": total, "frozen_body": False}
        show(record | self._slots._asdict() | {"folds": 1})
        for ended, number in enumerate(todo, 1):
            began = time.perf_counter()
            rows = streamed_fold.run(self._experiment, self._protocols[number], runs, self._levels, show)
            names = pa.array([self._names[number]] * rows.num_rows, pa.string())
            table = rows.select([field.name for field in self._fields()]).append_column("fold", names)
            seconds_left = (time.perf_counter() - start) / ended * (len(todo) - ended)
            figures = _figures(table, None)
            yield number, table, {**figures, "seconds": time.perf_counter() - began, "left": seconds_left}

    def _trained(self, folds: dict[int, Fold], columns: Any) -> Iterator[tuple[int, Result, float]]:
        """Number, result and seconds of each fold as it ends; as many at once as there are
        slots."""
        calls, located = [], config.with_absolute_paths(self._experiment)
        for number, fold in folds.items():
            calls.append((number, (located, columns, fold, self._levels, self._slots.threads)))
        outcomes = self._slots.map_unordered(_train_fold, calls, self._caches.closed)
        with closing(outcomes):
            for number, reference in outcomes:
                yield number, *self._outcome(reference, number)

    def _fold(self, number: int, faces: FaceCache) -> Fold:
        """The fold's rows among the usable faces, in the order of the shards."""
        rows = faces.rows(self._splits[number].parts)
        batch_size, count = self._experiment.train.batch_size, len(rows["train"])
        if count < batch_size:
            raise UserError(
                f"train.batch_size={batch_size}: fold {self._names[number]} has only {count} usable "
                f"training faces; lower it or add faces"
            )
        return Fold(self._names[number], **rows)

    def _outcome(self, reference: Any, number: int) -> tuple[Result, float]:
        """What a task returned. Raises UserError for what the user can mend."""
        try:
            outcome: tuple[Result, float] = ray.get(reference)
        except RayTaskError as error:
            name, cause = self._names[number], error.cause
            if isinstance(cause, FloatingPointError):
                raise UserError(f"fold {name}: {cause}; finished folds are kept") from None
            if isinstance(cause, torch.cuda.OutOfMemoryError):
                raise UserError(
                    f"fold {name}: out of GPU memory with {self._slots.gpus:.2g} of a GPU; "
                    f"lower scale.parallel_trainings or train.batch_size"
                ) from None
            raise
        return outcome

    def _table(self, number: int, fold: Fold, result: Result | None, faces: FaceCache) -> pa.Table:
        """A row per test face, also of those that cannot be used: see `predictions`, and `fold`."""
        keys = self._splits[number].parts["test"]
        labels = self._labelled.take(
            pc.index_in(pa.array(keys, pa.string()), value_set=self._labelled.column("key"))
        )
        genders = [gender_number(name) for name in labels.column("gender").to_pylist()]
        columns: dict[str, pa.Array] = {
            "key": pa.array(keys, pa.string()),
            "age": labels.column("age").combine_chunks(),
            "error": pa.array([faces.errors.get(key, "") for key in keys], pa.string()),
            "gender_number": pa.array(genders, pa.int8()),
        }
        answers: dict[str, Any] = {}
        if result is not None:
            answers = {**vars(result), **result.besides}
        places = _places(keys, fold, faces)
        for field in self._fields():
            if field.name not in columns:
                columns[field.name] = _scattered(answers.get(field.name), field, places)
        columns["fold"] = pa.array([fold.name] * len(keys), pa.string())
        schema = pa.schema([*self._fields(), ("fold", pa.string())])
        return pa.table([columns[name].cast(schema.field(name).type) for name in schema.names], schema)

    def _fields(self) -> list[pa.Field]:
        fields = list(PREDICTED)
        if self._experiment.model.decode.method == "gallery":
            fields += NEAREST
        if self._network.classifier_names:
            fields.append(CLASSIFIERS)
        return fields


def _places(keys: list[str], fold: Fold, faces: FaceCache) -> NDArray[np.int64]:
    """The place of each key among the fold's usable test faces, -1 for one that cannot be used."""
    place_of = dict(zip(fold.test.tolist(), range(len(fold.test)), strict=True))
    places = np.full(len(keys), -1)
    for number, key in enumerate(keys):
        if key in faces.row:
            places[number] = place_of[faces.row[key]]
    return places


def _scattered(values: Any, field: pa.Field, places: NDArray[np.int64]) -> pa.Array:
    """`values[place]` for each place; NaN, or null in a column of lists, where the place is -1.

    values: an array with a row per usable test face; None where the model has no such answer.
    """
    column: list[Any] = [None if pa.types.is_list(field.type) else float("nan")] * len(places)
    if values is not None:
        for number in np.flatnonzero(places >= 0):
            column[number] = values[places[number]]
    return pa.array(column, field.type)


def _figures(table: pa.Table, result: Result | None) -> Record:
    """Of a fold: faces tested, their MAE, and the epoch that was chosen."""
    errors = np.abs(table.column("predicted").to_numpy() - table.column("age").to_numpy())
    errors = errors[np.isfinite(errors)]
    best_epoch = None
    for record in result.log if result else []:
        if record["best"]:
            best_epoch = record["epoch"]
    return {
        "images": len(errors),
        "mae": float(errors.mean()) if len(errors) else None,
        "best_epoch": best_epoch,
    }
