"""The names of all files in the folder of an evaluation (`ageray evaluate --out DIR`)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ageray import storage
from ageray.report.page import PAGE

REPORT, PREDICTIONS, SPLIT = "report.json", "predictions.parquet", "split.parquet"
CONFIG, FOLDS = "config.yaml", "folds"


@dataclass(frozen=True)
class EvaluationFiles:
    """A folder that an evaluation writes to; `folder` is an absolute path or a URL.

    report.html, report.json            of every evaluation, comparison and matrix
    predictions.parquet                 of one model, and of a run over folds
    split.parquet                       of one model
    config.yaml, folds/0007.parquet     of a run over folds
    runs/                               its folds that were trained as runs of their own
    0-default/, 0-default-on-fgnet/     of several models (and sets): an evaluation of one model
    each
    """

    folder: str

    @classmethod
    def at(cls, out: str) -> EvaluationFiles:
        """The folder `out`, a path relative to the working folder, an absolute path or a URL."""
        return cls(storage.absolute(out.rstrip("/")))

    @property
    def page(self) -> str:
        """The page for a browser."""
        return storage.join(self.folder, PAGE)

    @property
    def report(self) -> str:
        """Every figure, as JSON."""
        return storage.join(self.folder, REPORT)

    @property
    def predictions(self) -> str:
        """What the model said of each tested face."""
        return storage.join(self.folder, PREDICTIONS)

    @property
    def split(self) -> str:
        """Which faces train, validate and test."""
        return storage.join(self.folder, SPLIT)

    @property
    def config(self) -> str:
        """The settings of a run over folds."""
        return storage.join(self.folder, CONFIG)

    @property
    def folds(self) -> str:
        """The folder of the finished folds."""
        return storage.join(self.folder, FOLDS)

    @property
    def runs(self) -> str:
        """The folder of the folds whose faces do not fit into memory."""
        return storage.join(self.folder, "runs")

    def fold(self, number: int) -> str:
        """The predictions of a finished fold."""
        return storage.join(self.folds, f"{number:04d}.parquet")

    def for_model(self, number: int, model: str, dataset: str = "") -> EvaluationFiles:
        """The folder of one of several models; with `dataset`, of this model on that set."""
        name = f"{number}-{short_name(model)}"
        if dataset:
            name = f"{name}-on-{dataset}"
        return EvaluationFiles(storage.join(self.folder, name))

    @property
    def link(self) -> str:
        """The page, relative to the folder above."""
        return storage.join(self.folder.rsplit("/", 1)[-1], PAGE)


def short_name(model: str) -> str:
    """A model's name for a folder: `zoo:default` gives `default`, a path its last part."""
    name = model.rstrip("/").rsplit("/", 1)[-1].rsplit(":", 1)[-1]
    return re.sub(r"[^\w.-]", "_", name)
