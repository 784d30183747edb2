"""Trains and tests the cells of a table; a cell that is finished is not trained again.

OUT/cells/<network>-<set>-<digest>/    an evaluation for each repeat (see `ageray.evaluate.folds`)
OUT/<table>.json, OUT/<table>.html     the table
Several tables may share OUT: equal cells have equal folders, so they are trained once.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ageray import storage
from ageray.config.paper_table import CellPlan, TablePlan
from ageray.evaluate.files import EvaluationFiles
from ageray.evaluate.folds import evaluate_folds
from ageray.evaluate.one_model import evaluate
from ageray.evaluate.table import figures
from ageray.evaluate.table.page import table_report
from ageray.evaluate.table.plan import Estimate
from ageray.experiment import Experiment
from ageray.experiment.paper_table import Column, Row
from ageray.models.build import build
from ageray.train import plan as train_plan
from ageray.train import run as train_run
from ageray.train.files import RunFiles
from ageray.train.in_memory.face_cache import FaceCaches
from ageray.train.in_memory.slots import plan_slots

Record = dict[str, Any]
Show = Callable[[Record], None]


class Tested(NamedTuple):
    """What a cell's evaluations give: the predictions of all repeats, with the columns `repeat` and
    `fold`; what a report says of the gallery; links to the reports, relative to OUT."""

    rows: pa.Table
    gallery: dict[str, Any] | None
    links: list[str]


def run_table(
    plan: TablePlan, estimates: Sequence[Estimate], name: str, out: str, show: Show, fresh: bool = False
) -> Record:
    """Runs every cell that can run; returns the table as it is written to OUT/<name>.json.

    Cells on the same faces run at the same time, as many as there are slots for trainings. show:
    receives notes, a record of kind `cell` as each cell ends, and the records of its folds. Each
    has `table_left`: the seconds left by the estimates and the speed so far. Needs a connected
    cluster.
    Raises UserError as training and testing do; finished folds and cells stay on disk.
    """
    folder = EvaluationFiles.at(out).folder
    storage.make_folder(folder)
    progress = _Progress(plan, estimates, show)
    tested: dict[str, Tested] = {}
    for group in _groups(plan.runnable):
        tested |= _run_group(group, folder, progress, fresh)
    table = {
        "title": plan.table.title,
        "paper": plan.table.paper,
        "notes": list(plan.table.notes),
        "columns": [column.name for column in plan.table.columns],
        "metrics": [column.metric for column in plan.table.columns],
        "rows": [_row(plan, row, tested) for row in plan.table.rows],
    }
    storage.write_text(storage.join(folder, f"{name}.json"), json.dumps(table, indent=1) + "\n")
    table_report(storage.join(folder, f"{name}.html"), table)
    return table


# --- cells ----------------------------------------------------------------------------------------


def _groups(cells: Sequence[CellPlan]) -> list[list[CellPlan]]:
    """Distinct cells; those on the same faces, aligned alike, stand together."""
    groups: dict[str, list[CellPlan]] = {}
    seen = set[str]()
    for cell in cells:
        if cell.identity not in seen:
            seen.add(cell.identity)
            first = cell.experiments[0]
            key = f"{first.data.shards} {first.align.model_dump_json()} {cell.tested is not None}"
            groups.setdefault(key, []).append(cell)
    return list(groups.values())


def _run_group(group: list[CellPlan], out: str, progress: _Progress, fresh: bool) -> dict[str, Tested]:
    """Runs the cells of a group, several at once where a cell has fewer folds than there are
    slots."""
    caches = FaceCaches()
    slots = plan_slots(group[0].experiments[0].scale).folds
    at_once = 1 if group[0].tested is not None else max(1, min(slots, len(group)))
    tested: dict[str, Tested] = {}
    if at_once == 1:
        for cell in group:
            tested[cell.identity] = _run_cell(cell, out, caches, progress, fresh)
        return tested
    with ThreadPoolExecutor(at_once) as pool:
        running = {pool.submit(_run_cell, cell, out, caches, progress, fresh): cell for cell in group}
        try:
            done, waiting = wait(running, return_when=FIRST_EXCEPTION)
        except BaseException:  # a signal: the pool waits for its threads, so they must end
            caches.close()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        for future in waiting:  # one failed: cells that have not begun are not started
            future.cancel()
        for future in done:
            tested[running[future].identity] = future.result()
    return tested


def _run_cell(cell: CellPlan, out: str, caches: FaceCaches, progress: _Progress, fresh: bool) -> Tested:
    folder = storage.join(out, "cells", cell.folder)
    tables, links, gallery = [], [], None
    for repeat, experiment in enumerate(cell.experiments):
        show = progress.of(cell, repeat)
        at = folder if len(cell.experiments) == 1 else storage.join(folder, f"seed-{repeat}")
        files = EvaluationFiles(at)
        if cell.tested is not None:
            report = _trained_once(experiment, cell.tested, files, show, fresh)
        else:
            report = evaluate_folds(experiment, at, show, fresh, caches)
        rows = pq.read_table(pa.BufferReader(storage.read_bytes(files.predictions)))
        if "fold" not in rows.column_names:
            rows = rows.append_column("fold", pa.array([""] * rows.num_rows))
        tables.append(rows.append_column("repeat", pa.array([repeat] * rows.num_rows)))
        links.append(storage.join(at.removeprefix(out).lstrip("/"), "report.html"))
        if "gallery" in report:
            gallery = {"faces": report["gallery"]["faces"], "gender_by": report.get("gender", {}).get("by")}
        progress.repeat_ended(cell, repeat)
    progress.ended(cell)
    return Tested(pa.concat_tables(tables, promote_options="default"), gallery, links)


def _trained_once(
    experiment: Experiment, tested: Experiment, files: EvaluationFiles, show: Show, fresh: bool
) -> Record:
    """Trains a run on one set, unless it is finished, and tests it on another."""
    run = RunFiles(train_plan.run_folder(experiment))
    if fresh or not storage.exists(run.card):
        planned = train_plan.make(experiment, fresh)

        def show_epoch(record: Record) -> None:
            if record["kind"] == "epoch":
                text = f"epoch {record['epoch']} of {record['epochs']}, loss {record['loss']:.3f}"
                text = f"{text}, {record['seconds']:.0f} s"
                show({"kind": "note", "text": text, "epoch": record["epoch"], "epochs": record["epochs"]})
            elif record["kind"] == "note":
                show(record)

        train_run.train(experiment, planned, show_epoch)
    return evaluate(run.folder, tested, files.folder)


# --- the table ------------------------------------------------------------------------------------


def _row(plan: TablePlan, row: Row, tested: dict[str, Tested]) -> Record:
    """A row: `name`, `control` and a cell or None for each column."""
    cells = []
    for column in plan.table.columns:
        cells.append(_cell(plan, row, column, tested) if column.name in row.paper else None)
    return {"name": row.name, "control": row.control, "cells": cells}


def _cell(plan: TablePlan, row: Row, column: Column, tested: dict[str, Tested]) -> Record:
    """The paper's figure, ours with its interval, the calibrated MAE, and in a column of MAE the
    difference to the control."""
    cell = plan.cell(row.name, column.name)
    assert cell is not None
    record: Record = {"paper": row.paper[column.name], "missing": cell.missing, "ours": None}
    if cell.missing:
        return record
    own = tested[cell.identity]
    rows = _rows(cell, own)
    record["ours"] = figures.figure(rows, column.metric, column.average, own.gallery)
    record["faces"] = rows.num_rows
    record["calibrated_mae"] = figures.calibrated(own.rows)
    record["reports"] = own.links
    control = plan.cell(row.control, column.name) if row.control is not None else None
    if column.metric == "mae" and control is not None and not control.missing:
        record["against_control"] = figures.difference(rows, _rows(control, tested[control.identity]))
    return record


def _rows(cell: CellPlan, tested: Tested) -> pa.Table:
    """The predictions, those of one classifier where the row asks for it."""
    if cell.row.classifier is None:
        return tested.rows
    names = list(build(cell.experiments[0].model, pretrained=False).classifier_names)
    return figures.of_classifier(tested.rows, names, cell.row.classifier)


# --- progress -------------------------------------------------------------------------------------


class _Part:
    """How far one repeat of a cell is, from 0 to 1.

    leading: the share of its work before the folds begin. before: what an earlier run has done.
    """

    def __init__(self, work: float, leading: float) -> None:
        self.work, self._leading = work, leading
        self.done, self.before, self._begun = 0.0, 0.0, False

    def take(self, record: Record) -> None:
        """Reads a record of an epoch before the folds, or of the folds."""
        if "epochs" in record:
            share, last = self._leading / record["epochs"], record["epoch"]
            if not self._begun:
                self.before = share * (last - 1)
            self.done = share * last
        elif record["kind"] in ("start", "fold"):
            done = self._leading + (1 - self._leading) * record["done"] / record["total"]
            if not self._begun:
                self.before = done
            elif record["kind"] == "start":  # the folds follow epochs of this run
                self.before += done - self._leading
            self.done = done
        else:
            return
        self._begun = True

    def end(self) -> None:
        """Counts the whole; a part without a record was finished before."""
        self.done = 1.0
        if not self._begun:
            self.before = 1.0


class _Progress:
    """Records of all cells, one at a time, each with the cell's name and the time left.

    Work that an earlier run has done counts neither in the speed nor in what is left.
    """

    def __init__(self, plan: TablePlan, estimates: Sequence[Estimate], show: Show) -> None:
        self._show, self._lock = show, threading.Lock()
        self._parts: dict[str, list[_Part]] = {}
        cells = {cell.name: cell for cell in plan.runnable}
        for each in estimates:
            if not each.shared:
                count = len(cells[each.cell].experiments)
                work = (each.seconds or 1.0) / count
                # a run tested on another set has no folds: its epochs are the whole
                leading = 1.0 if cells[each.cell].tested is not None else each.leading
                self._parts[each.cell] = [_Part(work, leading) for _ in range(count)]
        self._done, self._started = 0, time.monotonic()

    def of(self, cell: CellPlan, repeat: int) -> Show:
        """Receives the records of a repeat's folds and epochs."""

        def show(record: Record) -> None:
            with self._lock:
                self._parts[cell.name][repeat].take(record)
                self._show({**record, "cell": cell.name, "table_left": self._left()})

        return show

    def repeat_ended(self, cell: CellPlan, repeat: int) -> None:
        """Counts a repeat of a cell."""
        with self._lock:
            self._parts[cell.name][repeat].end()

    def ended(self, cell: CellPlan) -> None:
        """Counts a cell."""
        with self._lock:
            self._done += 1
            record = {"kind": "cell", "cell": cell.name, "done": self._done, "total": len(self._parts)}
            seconds = time.monotonic() - self._started
            self._show({**record, "seconds": seconds, "table_left": self._left()})

    def _left(self) -> float | None:
        """Seconds until all cells are done; None while nothing has been done."""
        done = rest = 0.0
        for parts in self._parts.values():
            for part in parts:
                done += part.work * (part.done - part.before)
                rest += part.work * (1 - part.done)
        if rest <= 0:
            return 0.0
        return (time.monotonic() - self._started) / done * rest if done > 0 else None
