"""Folds as Ray tasks: the faces decoded once into the object store, a share of the machine for each fold, results as they come."""

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
from ray.exceptions import RayTaskError

from ageray.data.splits import Split
from ageray.data.stream import gender_number
from ageray.errors import UserError
from ageray.evaluate.predictions import CLASSIFIERS, NEAREST, PREDICTED
from ageray.experiment import Experiment
from ageray.models.build import build
from ageray.train.in_memory import train
from ageray.train.in_memory.face_cache import FaceCache, hold, remember
from ageray.train.in_memory.slots import on_device, share_out
from ageray.train.in_memory.train import Fold, Result

Record = dict[str, Any]


def _train_fold(
    experiment: Experiment, faces: dict[str, Any], fold: Fold, levels: Sequence[float], threads: int
) -> tuple[Result, float]:
    """A task: the fold's result, and the seconds it took."""
    started = time.perf_counter()
    with on_device(threads) as device:
        return train.run(experiment, faces, fold, device, levels), time.perf_counter() - started


class Work:
    """The folds of one experiment that are still to be trained."""

    def __init__(
        self,
        experiment: Experiment,
        labelled: pa.Table,
        splits: list[Split],
        names: list[str],
        levels: Sequence[float],
    ) -> None:
        self._experiment, self._labelled, self._splits, self._names, self._levels = (
            experiment,
            labelled,
            splits,
            names,
            levels,
        )
        self._share, self._network = share_out(experiment.scale), build(experiment.model, pretrained=False)

    def results(
        self, todo: list[int], show: Callable[[Record], None]
    ) -> Generator[tuple[int, pa.Table, Record], None, None]:
        """Number, table and figures of each fold as it ends. What still runs is stopped when the caller stops."""
        todo, faces = list(todo), hold(self._experiment, self._labelled)
        planned = {number: self._fold(number, faces) for number in todo}
        remembered = remember(self._experiment, self._network, faces, self._share)
        total = len(self._splits)
        show(
            {
                "kind": "start",
                "done": total - len(todo),
                "total": total,
                "frozen_body": remembered,
                **self._share._asdict(),
            }
        )
        for number in [number for number in todo if not len(planned[number].test)]:  # nothing to ask a model
            todo.remove(number)
            table = self._table(number, planned[number], None, faces)
            yield number, table, {**_figures(table, None), "seconds": 0.0, "left": None}
        started = time.perf_counter()
        for ended, (number, result, seconds) in enumerate(
            self._trained([(number, planned[number]) for number in todo], faces.columns), 1
        ):
            table = self._table(number, planned[number], result, faces)
            left = (time.perf_counter() - started) / ended * (len(todo) - ended)
            yield number, table, {**_figures(table, result), "seconds": seconds, "left": left}

    def _trained(self, waiting: list[tuple[int, Fold]], columns: Any) -> Iterator[tuple[int, Result, float]]:
        """Number, result and seconds of each fold as it ends; no more tasks at once than the machine is shared out to."""
        levels, threads = tuple(self._levels), self._share.threads
        calls = [(number, (self._experiment, columns, fold, levels, threads)) for number, fold in waiting]
        with closing(self._share.map_unordered(_train_fold, calls)) as ended:
            for number, ready in ended:
                yield number, *self._outcome(ready, number)

    def _fold(self, number: int, faces: FaceCache) -> Fold:
        """The fold's rows among the usable faces, in the order of the shards."""
        rows = faces.rows(self._splits[number].parts)
        size, found = self._experiment.train.batch_size, len(rows["train"])
        if found < size:
            raise UserError(
                f"train.batch_size={size}: fold {self._names[number]} has only {found} usable training faces; lower it or add faces"
            )
        return Fold(self._names[number], **rows)

    def _outcome(self, task: Any, number: int) -> tuple[Result, float]:
        """What a task returned. Raises UserError for what the user can mend."""
        try:
            outcome: tuple[Result, float] = ray.get(task)
        except RayTaskError as error:
            name, cause = self._names[number], error.cause
            if isinstance(cause, FloatingPointError):
                raise UserError(f"fold {name}: {cause}; finished folds are kept") from None
            if isinstance(cause, torch.cuda.OutOfMemoryError):
                raise UserError(
                    f"fold {name}: out of GPU memory with {self._share.gpus:.2g} of a GPU; lower scale.fold_workers or train.batch_size"
                ) from None
            raise
        return outcome

    def _table(self, number: int, fold: Fold, result: Result | None, faces: FaceCache) -> pa.Table:
        """A row a test face, also of those that cannot be used: those of `predictions`, and `fold`."""
        keys = self._splits[number].parts["test"]
        labels = self._labelled.take(
            pc.index_in(pa.array(keys, pa.string()), value_set=self._labelled.column("key"))
        )
        row_of = {row: place for place, row in enumerate(fold.test.tolist())}
        places = [row_of[faces.row[key]] if key in faces.row else None for key in keys]
        found = {} if result is None else {**vars(result), **result.besides}
        found |= {
            "key": keys,
            "age": labels.column("age"),
            "error": [faces.errors.get(key, "") for key in keys],
        }
        found["gender_number"] = [gender_number(name) for name in labels.column("gender").to_pylist()]
        columns = [_column(found.get(field.name), field, places) for field in self._fields()]
        return pa.table(columns, pa.schema(self._fields())).append_column(
            "fold", pa.array([fold.name] * len(keys), pa.string())
        )

    def _fields(self) -> list[pa.Field]:
        nearest = NEAREST if self._experiment.model.decode.method == "gallery" else []
        return [*PREDICTED, *nearest, *([CLASSIFIERS] if self._network.classifier_names else [])]


def _column(values: Any, field: pa.Field, places: list[int | None]) -> pa.Array:
    """A column of the table. Arrays are by test face: picked at `places`, and NaN or null where there is none."""
    if values is not None and not isinstance(values, np.ndarray):
        return pa.array(values, field.type) if isinstance(values, list) else values.cast(field.type)
    nothing = None if pa.types.is_list(field.type) else float("nan")
    return pa.array(
        [nothing if values is None or place is None else values[place] for place in places], field.type
    )


def _figures(table: pa.Table, result: Result | None) -> Record:
    """Of a fold: faces tested, their MAE, and which epoch was taken."""
    errors = np.abs(table.column("predicted").to_numpy() - table.column("age").to_numpy())
    fine = np.isfinite(errors)
    best = [record["epoch"] for record in result.log if record["best"]] if result else []
    return {
        "images": int(fine.sum()),
        "mae": float(errors[fine].mean()) if fine.any() else None,
        "best_epoch": best[-1] if best else None,
    }
