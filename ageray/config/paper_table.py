"""From a table's file and the sets at hand to an experiment for each cell."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ageray.config.experiments import digest, load
from ageray.config.load import parse
from ageray.config.shipped import path_of
from ageray.errors import UserError
from ageray.experiment import Experiment
from ageray.experiment.paper_table import Column, PaperTable, Pretraining, Row


@dataclass(frozen=True)
class CellPlan:
    """A cell that the paper has.

    experiments: one for each repeat. missing: why the cell cannot run, '' if it can. tested: data
    and protocol of the test, where it is another set than that of the training.
    """

    row: Row
    column: Column
    experiments: tuple[Experiment, ...] = ()
    tested: Experiment | None = None
    missing: str = ""

    @property
    def name(self) -> str:
        """For progress and messages."""
        return f"{self.row.name}, {self.column.name}"

    @property
    def identity(self) -> str:
        """Equal for cells that share their trainings and tests: digests of their experiments."""
        digests = [digest(each) for each in self.experiments]
        if self.tested is not None:
            digests.append(f"on-{digest(self.tested)}")
        return "-".join(digests)

    @property
    def folder(self) -> str:
        """Name of the cell's folder, with the network, the set and `identity`."""
        first = self.experiments[0]
        name = self.tested.data.name if self.tested is not None else first.data.name
        short = hashlib.sha256(self.identity.encode()).hexdigest()[:8]
        return f"{first.model.name}-{name}-{short}"


@dataclass(frozen=True)
class TablePlan:
    """A table with a plan for each of its cells, row by row."""

    table: PaperTable
    cells: tuple[CellPlan, ...]

    @property
    def runnable(self) -> list[CellPlan]:
        """The cells whose sets are at hand."""
        return [cell for cell in self.cells if not cell.missing]

    def cell(self, row: str, column: str) -> CellPlan | None:
        """The cell of a row and a column; None if the paper has none."""
        for cell in self.cells:
            if (cell.row.name, cell.column.name) == (row, column):
                return cell
        return None


def read_table(path: str) -> PaperTable:
    """Reads a table's file. Raises UserError with every mistake, file and line."""
    return parse(PaperTable, [path])[0]


def plan_table(
    table: PaperTable, path: str, sets: Mapping[str, str], machine: Sequence[str], overrides: Sequence[str]
) -> TablePlan:
    """Plans every cell.

    path: of the table's file, from whose folder recipes are named. sets: the settings file of each
    set at hand, by `data.name`. machine: further files. overrides: of every cell; they win over
    those of a column, such as its epochs, and not over what makes a row.
    Raises UserError if a row's settings are wrong, or no cell can run.
    """
    path = path_of(path)
    cells = []
    for row in table.rows:
        for column in table.columns:
            if column.name in row.paper:
                cells.append(_cell(row, column, path, sets, machine, overrides))
    plan = TablePlan(table, tuple(cells))
    if not plan.runnable:
        raise UserError(f"{path}: no cell can run; {plan.cells[0].missing}")
    return plan


def _cell(
    row: Row,
    column: Column,
    path: str,
    sets: Mapping[str, str],
    machine: Sequence[str],
    overrides: Sequence[str],
) -> CellPlan:
    if column.data is None:
        return CellPlan(row, column, missing="the set is private")
    needed = [column.data]
    if column.tested_on is not None:
        needed.append(column.tested_on)
    if column.pretraining is not None:
        needed.append(column.pretraining.data)
    for name in needed:
        if name not in sets:
            return CellPlan(row, column, missing=f"add a FILE.yaml with data.name={name}")
    recipe = posixpath.normpath(posixpath.join(posixpath.dirname(path), row.recipe))
    others, of_test = [], []
    for word in column.overrides:
        # on one set, the split that trains is the split that is tested
        if column.tested_on not in (None, column.data) and word.startswith("protocol."):
            of_test.append(word)
        else:
            others.append(word)
    words = [*others, *overrides, *row.overrides]
    experiment = load([recipe, sets[column.data], *machine], words)
    if column.pretraining is not None:
        shards = _shards(sets[column.pretraining.data])
        experiment = _with_stage(experiment, column.pretraining, shards)
    if column.tested_on is not None:
        test = load([recipe, sets[column.tested_on], *machine], [*words, *of_test])
        return CellPlan(row, column, (experiment,), test)
    repeats = []
    for seed in range(column.repeats):
        repeat = experiment
        if column.repeats > 1:
            protocol = experiment.protocol.model_copy(update={"seed": seed})
            train = experiment.train.model_copy(update={"seed": seed})
            repeat = experiment.model_copy(update={"protocol": protocol, "train": train})
        repeats.append(repeat)
    return CellPlan(row, column, tuple(repeats))


def _shards(path: str) -> str:
    """The shards that a set's file names."""
    shards = load([path]).data.shards
    if shards is None:
        raise UserError(f"{path}: names no data.shards, so no stage can train on it; add them")
    return shards


def _with_stage(experiment: Experiment, pretraining: Pretraining, shards: str) -> Experiment:
    """The experiment with a stage on other shards before its own: its first stage, changed."""
    first = experiment.train.stages[0].model_dump(mode="json")
    words = [f"train.stages.0.{word}" for word in pretraining.overrides]
    base = {"train": {"stages": [{**first, "name": pretraining.data, "steps": None, "shards": shards}]}}
    stage = parse(Experiment, [], words, base, "the recipe's stage")[0].train.stages[0]
    train = experiment.train.model_copy(update={"stages": (stage, *experiment.train.stages)})
    return experiment.model_copy(update={"train": train})
