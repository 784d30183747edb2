"""The name of every file that a scoring run writes.

OUT/part-NNNNN.parquet          rows of faces, with their ages
    errors.parquet              rows of photos that gave no face
    _report.html                the page
    _summary.json               the figures; written last, so that a folder that has it is complete
OUT.unfinished/plan.json        what is scored with which settings
               progress.json    how far the run is
               lease-*.json     which process works here (`ageray.storage.lease`)
               pieces/*.parquet rows of whole chunks
               result/          becomes OUT when every chunk is done
"""

from __future__ import annotations

import hashlib
import re
import uuid
from dataclasses import dataclass

from ageray import storage
from ageray.storage import lease

SUMMARY, PAGE = "_summary.json", "_report.html"
"""Readers of folders of Parquet files (Arrow, pandas, DuckDB, Spark) pass over names that begin
with `_`."""

EARLIER_SUMMARY, EARLIER_PAGE = "summary.json", "report.html"
"""The two in results of version 0.1."""

FORMATS = ("parquet", "csv", "jsonl")
"""Endings of the table's files, as `--format` names them."""

ERRORS = "errors.parquet"
_PLAN, _PROGRESS = "plan.json", "progress.json"
_TABLE = ".parquet"

_AGAIN = "again-"
_PIECE = re.compile(r"(?:again-)?[0-9a-f]{32}(?:-([0-9a-f]{16}))?\.parquet")
_PART = re.compile(rf"(?:part-\d{{5,}}|errors)\.(?:{'|'.join(FORMATS)})")
_OF_DESKTOPS = (".DS_Store", "Thumbs.db", "desktop.ini")  # written by file browsers wherever they look


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
        return storage.join(self.folder, PAGE)

    @property
    def summary(self) -> str:
        """The figures of the run."""
        return storage.join(self.folder, SUMMARY)

    @property
    def earlier_summary(self) -> str:
        """The figures of a run of version 0.1."""
        return storage.join(self.folder, EARLIER_SUMMARY)

    @property
    def unfinished(self) -> str:
        """The folder beside `folder` that holds everything until the run is done."""
        return storage.unfinished(self.folder)

    @property
    def plan(self) -> str:
        """What the unfinished run scores with which settings."""
        return storage.join(self.unfinished, _PLAN)

    @property
    def progress(self) -> str:
        """How far the unfinished run is."""
        return storage.join(self.unfinished, _PROGRESS)

    @property
    def pieces(self) -> str:
        """The folder of rows that the unfinished run has computed."""
        return storage.join(self.unfinished, "pieces")

    def new_piece(self, content: bytes, again: bool = False) -> str:
        """The uri of a new piece with this content. Its name has the content's checksum.

        again: its photos are in other pieces too, as unavailable.
        """
        start = _AGAIN if again else ""
        return storage.join(self.pieces, f"{start}{uuid.uuid4().hex}-{_checksum(content)}{_TABLE}")

    @property
    def draft(self) -> ScoreFiles:
        """The result as it is put together, before it takes the place of `folder`."""
        return ScoreFiles(storage.join(self.unfinished, "result"))

    def is_ours(self, file: str) -> bool:
        """Whether a scoring run writes a file of this name into `folder`."""
        names = (SUMMARY, PAGE, EARLIER_SUMMARY, EARLIER_PAGE, storage.MARKER, *_OF_DESKTOPS)
        return file in names or _PART.fullmatch(file) is not None or storage.is_draft(file)

    def is_unfinished(self, file: str) -> bool:
        """Whether a scoring run writes a file of this name into `unfinished`."""
        folder, _, name = file.rpartition("/")
        if storage.is_draft(name) or name in _OF_DESKTOPS:
            return folder in ("", "pieces", "result")
        if folder == "pieces":
            return _PIECE.fullmatch(name) is not None
        if folder == "result":
            return self.is_ours(name)
        return folder == "" and (name in (_PLAN, _PROGRESS) or lease.is_lease(name))

    def is_work(self, file: str) -> bool:
        """Whether a file of `unfinished` is of one run's work, as leases and half written files
        are not.
        """
        name = file.rsplit("/", 1)[-1]
        aside = storage.is_draft(name) or name in _OF_DESKTOPS or lease.is_lease(name)
        return self.is_unfinished(file) and not aside


def is_again(piece: str) -> bool:
    """Whether a piece has photos that were unavailable in an earlier run."""
    return piece.rsplit("/", 1)[-1].startswith(_AGAIN)


def is_whole(piece: str, content: bytes) -> bool:
    """Whether a piece has the content that was written.

    A piece of an earlier version has no checksum in its name and passes.
    """
    match = _PIECE.fullmatch(piece.rsplit("/", 1)[-1])
    checksum = match and match.group(1)
    return not checksum or checksum == _checksum(content)


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
