"""The files of a search folder, each named once."""

from __future__ import annotations

from dataclasses import dataclass

from ageray import bundle, storage
from ageray.report.page import PAGE


@dataclass(frozen=True)
class SearchFiles:
    """Paths in one search folder.

    `config`, `tune` and `split` are written before the search, `trials` and `finalist` while it
    runs, `report`, `page` and `bundle` at its end.
    """

    folder: str

    @property
    def config(self) -> str:
        """The experiment."""
        return storage.join(self.folder, "config.yaml")

    @property
    def tune(self) -> str:
        """The search's settings."""
        return storage.join(self.folder, "tune.json")

    @property
    def split(self) -> str:
        """The part of each key, see `ageray.data.splits`."""
        return storage.join(self.folder, "split.parquet")

    @property
    def trials(self) -> str:
        """A JSON line per trial that has ended."""
        return storage.join(self.folder, "trials.jsonl")

    def finalist(self, name: str, seed: int) -> str:
        """The run of a finalist (`recipe`, `trial 17`) with one seed."""
        file = f"{name.replace(' ', '-')}-seed-{seed}.safetensors"
        return storage.join(self.folder, "finalists", file)

    @property
    def report(self) -> str:
        """Everything that the page draws."""
        return storage.join(self.folder, "report.json")

    @property
    def page(self) -> str:
        """The report as a page."""
        return storage.join(self.folder, PAGE)

    @property
    def bundle(self) -> str:
        """The folder of the winner's model."""
        return storage.join(self.folder, bundle.IN_RUN)
