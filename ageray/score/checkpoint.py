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

import io
import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ageray import storage
from ageray.errors import UserError
from ageray.score.chunks import Counts, split_chunk_id
from ageray.score.files import ScoreFiles

_TIME_SHARE = 0.02  # of the time so far, between two pieces
_MIN_SECONDS, _MAX_SECONDS = 2.0, 300.0  # between two pieces
_MAX_ROWS = 250_000  # of a piece, about


class ScoreCheckpoint:
    """The unfinished folder of `files`.

    `counts` are the totals over its pieces. `seconds` is the time that earlier runs took.
    """

    def __init__(self, files: ScoreFiles) -> None:
        self.files = files
        self.counts = Counts()
        self.seconds = 0.0
        self._done: set[int] = set()
        self._last: dict[int, int] = {}  # position of a segment's last chunk, if it is done
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
        for piece in self.pieces():
            self._count(piece)

    @property
    def done(self) -> frozenset[int]:
        """Ids of the chunks that are done."""
        return frozenset(self._done)

    def done_positions(self) -> dict[int, tuple[int, ...]]:
        """Positions of the chunks that are done, for each segment that has any."""
        positions: dict[int, list[int]] = defaultdict(list)
        for chunk in sorted(self._done):
            segment, position = split_chunk_id(chunk)
            positions[segment].append(position)
        return {segment: tuple(done) for segment, done in positions.items()}

    def finished_segments(self) -> set[int]:
        """Segments of which every chunk is done."""
        done = self.done_positions()
        return {segment for segment, last in self._last.items() if len(done[segment]) == last + 1}

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
        rows = pa.concat_tables(self._rows)
        content = io.BytesIO()
        pq.write_table(rows, content, compression="zstd")
        storage.write_bytes(self.files.new_piece(), content.getvalue())
        self._rows = []
        self._count(rows)

    def pieces(self) -> Iterator[pa.Table]:
        """The rows of every piece, each chunk once."""
        if not storage.is_folder(self.files.pieces):
            return
        seen: set[int] = set()
        for file in storage.list_files(self.files.pieces, (".parquet",)):
            rows = pq.read_table(io.BytesIO(storage.read_bytes(file)))
            chunks = set(pc.unique(rows.column("lot")).to_pylist())
            if not seen.isdisjoint(chunks):
                new = pa.array(sorted(chunks - seen), pa.int64())
                rows = rows.filter(pc.is_in(rows.column("lot"), new))
            seen |= chunks
            yield rows

    def delete(self) -> None:
        """Removes the folder."""
        storage.remove_tree(self.files.unfinished)

    def _count(self, rows: pa.Table) -> None:
        self.counts.add(rows)
        self._done.update(pc.unique(rows.column("lot")).to_pylist())
        last_chunks = rows.filter(rows.column("last")).column("lot")
        self._last.update(map(split_chunk_id, pc.unique(last_chunks).to_pylist()))


def read_json(uri: str) -> dict[str, Any] | None:
    """The JSON object in a file; None if there is no such file, or if it holds anything else."""
    if not storage.exists(uri):
        return None
    try:
        content = json.loads(storage.read_text(uri))
    except (ValueError, UserError):
        return None
    return content if isinstance(content, dict) else None
