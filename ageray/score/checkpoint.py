"""The work that a scoring run has done, on disk, so that a killed run resumes and scores no face
twice.

A run writes the rows of whole chunks to `pieces/` in OUT.unfinished (`ageray.score.files`). A piece
is written whole or not at all, and a chunk that is in a piece is not scored again. If two pieces
have the same chunk, because two runs worked at once, the result takes it once. A piece's name has
its checksum; a damaged piece is removed, and its chunks are scored again.

Photos whose store did not answer are in a piece as rows with the error `unavailable`. The next run
tries them again, under the same chunk and number. Their rows go to pieces of their own
(`again-...`); those that came win.

`plan.json` marks the folder as a run's. Without it nothing there is removed.

A piece is written whenever 2 % of the run's time so far has passed since the last one. A kill costs
about that much work, plus the chunks under way. The result is written from the pieces at the end,
in files of a useful size.

Ray Data has a job checkpoint of its own, which stores the ids of rows and filters them after the
read. It does not fit here: a photo has as many rows as faces, so ids are not known before; and rows
of tables would be read again with all their bytes.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from ageray import storage
from ageray.errors import StoreError, UserError
from ageray.score import chunks, pieces
from ageray.score.chunks import ChunkSet, Counts, split_chunk_id
from ageray.score.files import ScoreFiles, is_again
from ageray.score.pieces import DamagedPieceError, PieceIndex, Place
from ageray.storage import lease

_TIME_SHARE = 0.02  # of the time so far, between two pieces
_MIN_SECONDS, _MAX_SECONDS = 2.0, 300.0  # between two pieces
_MAX_ROWS = 250_000  # of a piece, about
_OF_EVERY_PLAN = {"input", "model", "detect"}


class ScoreCheckpoint:
    """The unfinished folder of `files`.

    `counts` are the totals over its pieces. `seconds` is the time that earlier runs took.
    """

    def __init__(self, files: ScoreFiles) -> None:
        self.files = files
        self.pieces = PieceIndex()
        self.seconds = 0.0
        self._again: frozenset[int] = frozenset()  # chunks of photos that were unavailable at the start
        self._came_later: set[Place] = set()
        self._rows: list[pa.Table] = []
        self._rows_again: list[pa.Table] = []
        self._written = 0.0

    @property
    def plan(self) -> dict[str, Any] | None:
        """What the unfinished run scores with which settings; None if there is no such run.

        Raises UserError if the folder has files that no scoring run wrote, or files but no plan
        that can be read.
        """
        folder = self.files.unfinished
        if storage.exists(folder) and not storage.is_folder(folder):
            raise UserError(f"{folder}: is a file, and the run writes there; move it away")
        remedy = "move the folder away, or give another --out"
        work = []
        for name in storage.names_below(folder):
            if not self.files.is_unfinished(name):
                raise UserError(f"{folder}: has {name}, which ageray score did not write; {remedy}")
            if self.files.is_work(name):
                work.append(name)
        if not work:
            return None
        plan = read_json(self.files.plan)
        if plan is None or not plan.keys() >= _OF_EVERY_PLAN:
            problem = "its plan.json is missing or damaged, so nobody knows which run it is of"
            raise UserError(f"{folder}: has {work[0]}, but {problem}; {remedy}")
        return plan

    def open(self, plan: dict[str, Any]) -> None:
        """Makes the folder for this plan, or reads the pieces that it holds.

        Raises UserError if the folder cannot be written.
        """
        self.seconds = _seconds(read_json(self.files.progress))
        storage.write_text(self.files.plan, json.dumps(plan, indent=1, ensure_ascii=False) + "\n")
        storage.remove_tree(self.files.draft.folder)
        storage.make_folder(self.files.pieces)
        for file in self._piece_files():  # those with photos again come last
            try:
                rows = pieces.read(file)
            except DamagedPieceError as error:
                print(f"{file}: damaged ({error}); its photos are scored again", flush=True)
                storage.remove(self.files.pieces, [file.rsplit("/", 1)[-1]])
                continue
            if is_again(file):
                self._add_again(file, rows)
            else:
                self.pieces.add(pieces.describe(file, rows))
        self._again = frozenset(chunk for chunk, _ in self.pieces.unavailable)

    def add_result(self, tables: Iterable[pa.Table], seconds: float) -> None:
        """Takes the rows of a complete result as those of earlier runs, which took `seconds`; a
        table becomes a piece. Their photos with the error `unavailable` are tried again.
        """
        for rows in tables:
            if rows.num_rows:
                self.pieces.add(pieces.write(self.files, rows))
        self.pieces.unavailable.difference_update(self._came_later)
        self.seconds = self.seconds or seconds
        self._again = frozenset(chunk for chunk, _ in self.pieces.unavailable)

    @property
    def counts(self) -> Counts:
        """Totals over the chunks that are done."""
        return self.pieces.counts

    @property
    def done(self) -> ChunkSet:
        """Ids of the chunks that are done."""
        return self.pieces.done

    @property
    def chunks_again(self) -> frozenset[int]:
        """Ids of the chunks with photos that were unavailable in the runs before."""
        return self._again

    def done_positions(self) -> dict[int, tuple[int, ...]]:
        """Positions of the chunks that are done, for each segment that has any."""
        return self.pieces.done.positions()

    def finished_segments(self) -> set[int]:
        """Segments of which every chunk is done."""
        return self.pieces.finished_segments()

    @property
    def unavailable(self) -> frozenset[Place]:
        """The photos whose store did not answer, in this run or those before."""
        return frozenset(self.pieces.unavailable)

    def photos_again(self, segments: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """The photos of a list that were unavailable in the runs before, labelled as their chunks
        were.

        segments: the whole list. It is not read if no photo was unavailable.
        """
        again: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        for chunk, photo in sorted(self.pieces.unavailable):
            segment, position = split_chunk_id(chunk)
            again[segment][position].append(photo)
        if not again:
            return
        for number, photos in enumerate(segments):
            for position, numbers in again.get(number, {}).items():
                yield chunks.cut_again(photos, number, position, numbers)

    def is_again(self, chunk: pa.Table) -> bool:
        """Whether these rows are of photos that were unavailable before."""
        return chunk.column("lot")[0].as_py() in self._again

    def add(self, chunk: pa.Table, seconds: float) -> None:
        """Takes the rows of a whole chunk, or those of its photos that were unavailable, `seconds`
        after the start of this run; writes a piece if it is time.
        """
        if self.is_again(chunk):
            came = _without(chunk, set(pieces.places(chunks.unavailable(chunk))))
            if came.num_rows:
                self._rows_again.append(came)
        else:
            self._rows.append(chunk)
        pause = max(_MIN_SECONDS, min(_MAX_SECONDS, _TIME_SHARE * (self.seconds + seconds)))
        if seconds - self._written >= pause or sum(map(len, self._rows)) >= _MAX_ROWS:
            self.flush(seconds)

    def flush(self, seconds: float) -> None:
        """Writes the rows that are not in a piece yet, `seconds` after the start of this run."""
        self._written = seconds
        if self._rows:
            self.pieces.add(pieces.write(self.files, pa.concat_tables(self._rows)))
            self._rows = []
        if self._rows_again:
            rows = pa.concat_tables(self._rows_again)
            self._add_again(pieces.write(self.files, rows, again=True).uri, rows)
            self._rows_again = []

    def delete(self) -> None:
        """Removes the files that scoring runs write into the folder, and the folder if it is empty
        then. Leases stay.
        """
        names, last = [], []
        for name in storage.names_below(self.files.unfinished):
            if storage.join(self.files.unfinished, name) == self.files.plan:
                last.append(name)  # it says what the rest is
            elif self.files.is_unfinished(name) and not lease.is_lease(name):
                names.append(name)
        storage.remove(self.files.unfinished, names)
        storage.remove(self.files.unfinished, last)

    def _piece_files(self) -> list[str]:
        if not storage.is_folder(self.files.pieces):
            return []
        return sorted(storage.list_files(self.files.pieces, (".parquet",)), key=is_again)

    def _add_again(self, uri: str, rows: pa.Table) -> None:
        """Counts a piece of photos that were unavailable, without those that came already."""
        came = _without(rows, self._came_later)
        self.pieces.add(pieces.describe(uri, came))
        self._came_later.update(pieces.places(came))
        self.pieces.unavailable.difference_update(pieces.places(came))


def _without(rows: pa.Table, places: set[Place]) -> pa.Table:
    if not places:
        return rows
    return rows.filter(pa.array([place not in places for place in pieces.places(rows)], pa.bool_()))


def _seconds(progress: dict[str, Any] | None) -> float:
    """The time that earlier runs took, by a `progress.json` that may be damaged."""
    seconds = (progress or {}).get("seconds", 0.0)
    is_time = isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 <= seconds < 1e12
    return float(seconds) if is_time else 0.0


def read_json(uri: str) -> dict[str, Any] | None:
    """The JSON object in a file; None if there is no such file, or if it holds anything else."""
    if not storage.exists(uri):
        return None
    try:
        content = json.loads(storage.read_text(uri))
    except StoreError:
        raise
    except (ValueError, UserError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
