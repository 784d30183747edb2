"""The work that a scoring run has done, on disk, so that a killed run resumes and scores no face
twice.

A run writes the rows of whole chunks to `pieces/` in OUT.unfinished (`ageray.score.files`). A piece
is written whole or not at all, and a chunk that is in a piece is not scored again. If two pieces
hold the same chunk, because two runs worked at once, the result takes it once.

A piece is written whenever 2 % of the run's time so far has passed since the last one. A kill costs
about that much work, plus the chunks under way. The result is written from the pieces at the end,
in files of a useful size.

Ray Data has a job checkpoint of its own, which stores the ids of rows and filters them after the
read. It does not fit here: a photo has as many rows as faces, so ids are not known before; and rows
of tables would be read again with all their bytes.
"""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from ageray import storage
from ageray.errors import UserError
from ageray.score import pieces
from ageray.score.chunks import ChunkSet, Counts
from ageray.score.files import ScoreFiles
from ageray.score.pieces import PieceIndex

_TIME_SHARE = 0.02  # of the time so far, between two pieces
_MIN_SECONDS, _MAX_SECONDS = 2.0, 300.0  # between two pieces
_MAX_ROWS = 250_000  # of a piece, about


class ScoreCheckpoint:
    """The unfinished folder of `files`.

    `counts` are the totals over its pieces. `seconds` is the time that earlier runs took.
    """

    def __init__(self, files: ScoreFiles) -> None:
        self.files = files
        self.pieces = PieceIndex()
        self.seconds = 0.0
        self._rows: list[pa.Table] = []
        self._written = 0.0

    @property
    def plan(self) -> dict[str, Any] | None:
        """What the unfinished run scores with which settings; None if there is no such run."""
        return read_json(self.files.plan)

    def open(self, plan: dict[str, Any]) -> None:
        """Makes the folder for this plan, or reads the pieces that it holds.

        Raises UserError if the folder cannot be written.
        """
        progress = read_json(self.files.progress) or {}
        self.seconds = float(progress.get("seconds", 0))
        storage.remove_tree(self.files.draft.folder)
        storage.make_folder(self.files.pieces)
        storage.write_text(self.files.plan, json.dumps(plan, indent=1, ensure_ascii=False) + "\n")
        for uri in self._piece_files():
            self.pieces.add(pieces.describe(uri, pieces.read(uri)))

    @property
    def counts(self) -> Counts:
        """Totals over the chunks that are done."""
        return self.pieces.counts

    @property
    def done(self) -> ChunkSet:
        """Ids of the chunks that are done."""
        return self.pieces.done

    def done_positions(self) -> dict[int, tuple[int, ...]]:
        """Positions of the chunks that are done, for each segment that has any."""
        return self.pieces.done.positions()

    def finished_segments(self) -> set[int]:
        """Segments of which every chunk is done."""
        return self.pieces.finished_segments()

    def add(self, chunk: pa.Table, seconds: float) -> None:
        """Takes the rows of a whole chunk, `seconds` after the start of this run; writes a piece if
        it is time.
        """
        self._rows.append(chunk)
        pause = max(_MIN_SECONDS, min(_MAX_SECONDS, _TIME_SHARE * (self.seconds + seconds)))
        if seconds - self._written >= pause or sum(map(len, self._rows)) >= _MAX_ROWS:
            self.flush(seconds)

    def flush(self, seconds: float) -> None:
        """Writes the rows that are not in a piece yet, `seconds` after the start of this run."""
        self._written = seconds
        if not self._rows:
            return
        self.pieces.add(pieces.write(self.files, pa.concat_tables(self._rows)))
        self._rows = []

    def delete(self) -> None:
        """Removes the folder."""
        storage.remove_tree(self.files.unfinished)

    def _piece_files(self) -> list[str]:
        if not storage.is_folder(self.files.pieces):
            return []
        return storage.list_files(self.files.pieces, (".parquet",))


def read_json(uri: str) -> dict[str, Any] | None:
    """The JSON object in a file; None if there is no such file, or if it holds anything else."""
    if not storage.exists(uri):
        return None
    try:
        content = json.loads(storage.read_text(uri))
    except (ValueError, UserError):
        return None
    return content if isinstance(content, dict) else None
