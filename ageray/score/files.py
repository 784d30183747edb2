"""The name of every file that a scoring run writes.

OUT/part-NNNNN.parquet          rows of faces, with their ages
    errors.parquet              rows of photos that gave no face
    report.html                 the page
    summary.json                the figures; written last, so that a folder that has it is complete
OUT.unfinished/plan.json        what is scored with which settings
               progress.json    how far the run is
               pieces/*.parquet rows of whole chunks
               result/          becomes OUT when every chunk is done
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from ageray import report, storage

SUMMARY = "summary.json"
ERRORS = "errors.parquet"
_TABLE = ".parquet"


@dataclass(frozen=True)
class ScoreFiles:
    """The files of the scores folder at the uri `folder`. Nothing here reads or writes."""

    folder: str

    def part(self, number: int) -> str:
        """One of the tables of faces, counted from 0."""
        return storage.join(self.folder, f"part-{number:05d}{_TABLE}")

    @property
    def errors(self) -> str:
        """The table of rows that have an `error`. With the parts it makes up the whole scores
        table.
        """
        return storage.join(self.folder, ERRORS)

    @property
    def page(self) -> str:
        """The page to open in a browser."""
        return storage.join(self.folder, report.PAGE)

    @property
    def summary(self) -> str:
        """The figures of the run."""
        return storage.join(self.folder, SUMMARY)

    @property
    def unfinished(self) -> str:
        """The folder beside `folder` that holds everything until the run is done."""
        return storage.unfinished(self.folder)

    @property
    def plan(self) -> str:
        """What the unfinished run scores with which settings."""
        return storage.join(self.unfinished, "plan.json")

    @property
    def progress(self) -> str:
        """How far the unfinished run is."""
        return storage.join(self.unfinished, "progress.json")

    @property
    def pieces(self) -> str:
        """The folder of rows that the unfinished run has computed."""
        return storage.join(self.unfinished, "pieces")

    def new_piece(self) -> str:
        """A file in `pieces` that does not exist yet."""
        return storage.join(self.pieces, f"{uuid.uuid4().hex}{_TABLE}")

    @property
    def draft(self) -> ScoreFiles:
        """The result as it is put together, before it takes the place of `folder`."""
        return ScoreFiles(storage.join(self.unfinished, "result"))

    def is_ours(self, file: str) -> bool:
        """Whether a scoring run may have written the file of this name into `folder`."""
        return file in (SUMMARY, report.PAGE) or file.endswith(_TABLE)
