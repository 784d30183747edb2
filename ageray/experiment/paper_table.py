"""The file of a paper's table: rows as overrides of a recipe, columns as sets with a protocol and a
metric.

One file in `configs/tables/` for every table and figure of results of the five papers.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ageray.experiment.strict import Count, Strict

Metric = Literal["mae", "cs3", "cs5", "epsilon_error", "gender"]
"""`mae`: mean absolute error in years. `cs3`, `cs5`: share of errors of at most 3 and 5 years.
`epsilon_error`: of the LAP challenge. `gender`: share of right genders by the nearest faces."""


class Pretraining(Strict):
    """A stage on another set, before the row's own stages: trained once, shared by all folds."""

    data: str
    """Name of the set (`data.name`)."""
    overrides: tuple[str, ...] = ()
    """Changes to the recipe's first stage for this one, such as `epochs=10`."""


class Column(Strict):
    """A set, what is tested of it, and the figure."""

    name: str
    """As in the paper."""
    data: str | None = None
    """Name of the set that trains and tests (`data.name`); null for a set that nobody can get."""
    overrides: tuple[str, ...] = ()
    """Settings of all its cells: the protocol, and what the paper changes for this set."""
    metric: Metric = "mae"
    """The figure."""
    repeats: Count = 1
    """Random splits of seeds 0, 1, ..., each with a training of the same seed; the figure is that
    of all their test faces."""
    average: Literal["faces", "folds"] = "faces"
    """Mean over the test faces, or over the folds' means (S1-S2-S3)."""
    pretraining: Pretraining | None = None
    """A stage before the rows' own."""
    tested_on: str | None = None
    """Name of the set to test on, for a row that is one training run on `data`, with a report that
    maps its features. Of another set, `overrides` that begin with `protocol.` say what is tested;
    the training has the protocol of `data`'s own file."""


class Row(Strict):
    """A method: a recipe with overrides."""

    name: str
    """As in the paper."""
    recipe: str
    """The recipe's file, relative to the table's."""
    overrides: tuple[str, ...] = ()
    """Settings that differ from the recipe."""
    control: str | None = None
    """Name of the row to compare with, face by face."""
    classifier: str | None = None
    """Take the age of one of the network's classifiers, such as G-1 (DHAA, Figure 6)."""
    paper: dict[str, float | None]
    """The paper's figure by the column's name. A column that is not named is not run for this row;
    null: the paper gives no figure, or our text of it is not legible."""


class PaperTable(Strict):
    """A table or figure of a paper."""

    title: str
    """Paper and number of the table."""
    paper: str
    """Citation."""
    notes: tuple[str, ...] = ()
    """What a reader must know, shown on the page."""
    columns: Annotated[tuple[Column, ...], Field(min_length=1)]
    """The columns."""
    rows: Annotated[tuple[Row, ...], Field(min_length=1)]
    """The rows."""

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        rows = [row.name for row in self.rows]
        columns = {column.name for column in self.columns}
        if len(set(rows)) < len(rows) or len(columns) < len(self.columns):
            raise ValueError("names of rows and of columns must differ")
        for row in self.rows:
            if row.control is not None and (row.control not in rows or row.control == row.name):
                raise ValueError(f"row '{row.name}': control '{row.control}' is no other row")
            for name in row.paper:
                if name not in columns:
                    raise ValueError(f"row '{row.name}': paper names '{name}', which is no column")
        return self

    def sets(self) -> list[str]:
        """The names of all sets that the table needs, in the order of the columns."""
        names: list[str] = []
        for column in self.columns:
            names += [column.data or "", column.tested_on or ""]
            if column.pretraining is not None:
                names.append(column.pretraining.data)
        return [name for name in dict.fromkeys(names) if name]
