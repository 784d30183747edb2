"""Folds as Ray tasks: the faces decoded once into the object store, a share of the machine for each fold, results as they come."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch
from ray.exceptions import RayTaskError

from ageray.data.batches import canvas_side
from ageray.data.splits import Split
from ageray.data.stream import face_stream, gender_number
from ageray.errors import UserError
from ageray.evaluation.predictions import CLASSIFIERS, NEAREST, PREDICTED
from ageray.experiment import Experiment, Scale
from ageray.models.model import build
from ageray.train import folds, frozen
from ageray.train.folds import Fold, Result

_FULLEST = 0.6  # share of the object store that faces may take: decoding needs some too
_FEATURES_A_TASK = 512
_NUMBERED = ("canvas", "points", "box", "age", "gender", "subject")

Record = dict[str, Any]


# --- with what machine ----------------------------------------------------------------------------------------------


class Share(NamedTuple):
    """Folds at once, and what each takes: logical CPUs, GPUs (a fraction where several share one) and compute threads (0: all cores)."""

    folds: int
    cpus: float
    gpus: float
    threads: int


def share_out(scale: Scale) -> Share:
    """The machine's share of a fold. Raises UserError if the cluster lacks what `scale` asks for."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    cpus, gpus = (sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU"))
    largest = max(node.get("CPU", 0) for node in nodes)
    if scale.gpu is True and not gpus:
        raise UserError("scale.gpu=true: the cluster has no GPU; use scale.gpu=auto")
    if scale.cpus_per_worker > largest:
        raise UserError(f"scale.cpus_per_worker={scale.cpus_per_worker:g}: no machine has more than {largest:g} logical CPUs; lower it")
    if gpus and scale.gpu is not False:
        at_once = scale.fold_workers or int(gpus)
        share = 1 / math.ceil(at_once / gpus)
    else:
        # alone on this machine Ray may have more logical CPUs than there are cores, so that decoding never waits
        cores = min(cpus, os.cpu_count() or 1) if len(nodes) == 1 else cpus
        at_once, share = scale.fold_workers or max(1, int(cores // scale.cpus_per_worker)), 0.0
    taken = min(scale.cpus_per_worker, cpus / at_once)
    return Share(at_once, taken, share, scale.threads or (0 if at_once == 1 else max(1, int(scale.cpus_per_worker))))


@contextmanager
def _device(threads: int) -> Iterator[torch.device]:
    """In a task: its GPU, or the CPU with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or os.cpu_count() or 1)
    try:
        yield torch.device("cuda" if ray.get_gpu_ids() else "cpu")
    finally:
        torch.set_num_threads(before)


def _train_fold(experiment: Experiment, faces: dict[str, Any], fold: Fold, levels: Sequence[float], threads: int) -> tuple[Result, float]:
    """A task: the fold's result, and the seconds it took."""
    started = time.perf_counter()
    with _device(threads) as device:
        return folds.run(experiment, faces, fold, device, levels), time.perf_counter() - started


def _features(experiment: Experiment, faces: dict[str, Any], first: int, last: int, threads: int) -> Any:
    """A task: the frozen body's features of some of the faces."""
    with _device(threads) as device:
        body = frozen.take_body(build(experiment.model, seed=experiment.train.seed))
        return frozen.features(body, {name: values[first:last] for name, values in faces.items()}, experiment, device)


# --- the work -------------------------------------------------------------------------------------------------------


@dataclass
class _Faces:
    """Usable faces: `columns` in the object store, where each key's row is; and the reason why another cannot be used."""

    columns: Any
    row: dict[str, int]
    errors: dict[str, str]


class Work:
    """The folds of one experiment that are still to be trained."""

    def __init__(self, experiment: Experiment, labelled: pa.Table, splits: list[Split], names: list[str], levels: Sequence[float]) -> None:
        self._experiment, self._labelled, self._splits, self._names, self._levels = experiment, labelled, splits, names, levels
        self._share, self._network = share_out(experiment.scale), build(experiment.model, pretrained=False)

    def results(self, todo: list[int], show: Callable[[Record], None]) -> Generator[tuple[int, pa.Table, Record], None, None]:
        """Number, table and figures of each fold as it ends. What still runs is stopped when the caller stops."""
        todo, faces = list(todo), _decode(self._experiment, self._labelled)
        planned = {number: self._fold(number, faces) for number in todo}
        remembered = self._remember(faces)
        total = len(self._splits)
        show({"kind": "start", "done": total - len(todo), "total": total, "frozen_body": remembered, **self._share._asdict()})
        for number in [number for number in todo if not len(planned[number].test)]:  # nothing to ask a model
            todo.remove(number)
            table = self._table(number, planned[number], None, faces)
            yield number, table, {**_figures(table, None), "seconds": 0.0, "left": None}
        started = time.perf_counter()
        for ended, (number, result, seconds) in enumerate(self._trained([(number, planned[number]) for number in todo], faces.columns), 1):
            table = self._table(number, planned[number], result, faces)
            left = (time.perf_counter() - started) / ended * (len(todo) - ended)
            yield number, table, {**_figures(table, result), "seconds": seconds, "left": left}

    def _trained(self, waiting: list[tuple[int, Fold]], columns: Any) -> Iterator[tuple[int, Result, float]]:
        """Number, result and seconds of each fold as it ends; no more tasks at once than the machine is shared out to."""
        task, levels, threads = self._remote(_train_fold), tuple(self._levels), self._share.threads
        waiting, running = waiting[::-1], dict[Any, int]()
        try:
            while waiting or running:
                while waiting and len(running) < self._share.folds:
                    number, fold = waiting.pop()
                    running[task.remote(self._experiment, columns, fold, levels, threads)] = number
                [ready], _ = ray.wait(list(running), num_returns=1)
                number = running.pop(ready)
                yield number, *self._outcome(ready, number)
        finally:
            for left_over in running:
                ray.cancel(left_over, force=True)

    def _fold(self, number: int, faces: _Faces) -> Fold:
        """The fold's rows among the usable faces, in the order of the shards."""
        parts = self._splits[number].parts
        rows = {name: np.array(sorted(faces.row[key] for key in keys if key in faces.row), np.int64) for name, keys in parts.items()}
        size, found = self._experiment.train.batch_size, len(rows["train"])
        if found < size:
            raise UserError(
                f"train.batch_size={size}: fold {self._names[number]} has only {found} usable training faces; lower it or add faces"
            )
        return Fold(self._names[number], **rows)

    def _remote(self, task: Callable[..., Any]) -> Any:
        return ray.remote(num_cpus=self._share.cpus, num_gpus=self._share.gpus)(task)

    def _remember(self, faces: _Faces) -> bool:
        """Puts features in the place of pixels where the body is frozen; whether it did."""
        if not frozen.applies(self._experiment, self._network):
            return False
        task, count = self._remote(_features), len(faces.row)
        pieces = [(first, min(first + _FEATURES_A_TASK, count)) for first in range(0, count, _FEATURES_A_TASK)]
        found = np.concatenate(ray.get([task.remote(self._experiment, faces.columns, *piece, self._share.threads) for piece in pieces]))
        columns = {name: values for name, values in ray.get(faces.columns).items() if name not in ("canvas", "points", "box")}
        faces.columns = ray.put({**columns, "features": found})
        return True

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

    def _table(self, number: int, fold: Fold, result: Result | None, faces: _Faces) -> pa.Table:
        """A row a test face, also of those that cannot be used: those of `predictions`, and `fold`."""
        keys = self._splits[number].parts["test"]
        labels = self._labelled.take(pc.index_in(pa.array(keys, pa.string()), value_set=self._labelled.column("key")))
        row_of = {row: place for place, row in enumerate(fold.test.tolist())}
        places = [row_of[faces.row[key]] if key in faces.row else None for key in keys]
        found = {} if result is None else {**vars(result), **result.besides}
        found |= {"key": keys, "age": labels.column("age"), "error": [faces.errors.get(key, "") for key in keys]}
        found["gender_number"] = [gender_number(name) for name in labels.column("gender").to_pylist()]
        columns = [_column(found.get(field.name), field, places) for field in self._fields()]
        return pa.table(columns, pa.schema(self._fields())).append_column("fold", pa.array([fold.name] * len(keys), pa.string()))

    def _fields(self) -> list[pa.Field]:
        nearest = NEAREST if self._experiment.model.decode.method == "gallery" else []
        return [*PREDICTED, *nearest, *([CLASSIFIERS] if self._network.classifier_names else [])]


def _column(values: Any, field: pa.Field, places: list[int | None]) -> pa.Array:
    """A column of the table. Arrays are by test face: picked at `places`, and NaN or null where there is none."""
    if values is not None and not isinstance(values, np.ndarray):
        return pa.array(values, field.type) if isinstance(values, list) else values.cast(field.type)
    nothing = None if pa.types.is_list(field.type) else float("nan")
    return pa.array([nothing if values is None or place is None else values[place] for place in places], field.type)


def _figures(table: pa.Table, result: Result | None) -> Record:
    """Of a fold: faces tested, their MAE, and which epoch was taken."""
    errors = np.abs(table.column("predicted").to_numpy() - table.column("age").to_numpy())
    fine = np.isfinite(errors)
    best = [record["epoch"] for record in result.log if record["best"]] if result else []
    return {"images": int(fine.sum()), "mae": float(errors[fine].mean()) if fine.any() else None, "best_epoch": best[-1] if best else None}


def _decode(experiment: Experiment, labelled: pa.Table) -> _Faces:
    """All labelled faces as canvases, once, in the object store, in the order of the shards. Raises UserError if they do not fit in it."""
    shards, side, count = str(experiment.data.shards), canvas_side(experiment.align), labelled.num_rows
    _check_room(shards, count, side, experiment.align.size)
    canvas = np.empty((count, side, side, 3), np.uint8)
    parts: dict[str, list[Any]] = {name: [] for name in _NUMBERED[1:]}
    row, errors = dict[str, int](), dict[str, str]()
    stream = face_stream(shards, experiment.align, experiment.scale.decode_batch)
    for batch in stream.iter_batches(batch_size=None, batch_format="numpy"):
        fine = batch["error"] == ""
        errors |= zip(batch["key"][~fine].tolist(), batch["error"][~fine].tolist(), strict=True)
        first = len(row)
        row |= {key: first + place for place, key in enumerate(batch["key"][fine].tolist())}
        canvas[first : len(row)] = batch["canvas"][fine]
        for name, arrays in parts.items():
            arrays.append(batch[name][fine])
    if not row:
        key, reason = next(iter(errors.items()))
        raise UserError(f"data.shards={shards}: no face can be used; the first of {len(errors)}: {key}: {reason}")
    columns = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    return _Faces(ray.put({"canvas": canvas[: len(row)], **columns}), row, errors)


def _check_room(shards: str, faces: int, side: int, size: int) -> None:
    needed = faces * side * side * 3
    room = ray.cluster_resources().get("object_store_memory", 0)  # type: ignore[no-untyped-call]
    room /= max(1, len([node for node in ray.nodes() if node["Alive"]]))  # type: ignore[no-untyped-call]
    if needed > _FULLEST * room:
        raise UserError(
            f"data.shards={shards}: {faces:,} faces at align.size={size} take {needed / 2**20:,.0f} MiB, more than {_FULLEST:.0%} of the object "
            f"store's {room / 2**20:,.0f} MiB; raise scale.object_store_mib, or lower align.size"
        )
