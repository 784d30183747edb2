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

import io
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ageray import lease, storage
from ageray.errors import StoreError, UserError, one_line
from ageray.score import chunks
from ageray.score.chunks import Counts, split_chunk_id
from ageray.score.files import ScoreFiles, is_again, is_whole

_TIME_SHARE = 0.02  # of the time so far, between two pieces
_MIN_SECONDS, _MAX_SECONDS = 2.0, 300.0  # between two pieces
_MAX_ROWS = 250_000  # of a piece, about
_OF_EVERY_PLAN = {"input", "model", "detect"}


Place = tuple[int, int]
"""Of a photo: the id of its chunk, and its number in the chunk."""


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
        self._unavailable: set[Place] = set()
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
                rows = _read_piece(file)
            except _DamagedPieceError as error:
                print(f"{file}: damaged ({error}); its photos are scored again", flush=True)
                storage.remove(self.files.pieces, [file.rsplit("/", 1)[-1]])
                continue
            if is_again(file):
                self._count_again(rows)
            else:
                self._count(rows)

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

    @property
    def unavailable(self) -> frozenset[Place]:
        """The photos whose store did not answer, in this run or those before."""
        return frozenset(self._unavailable)

    def photos_again(self, segments: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """The photos of a list that were unavailable in the runs before, labelled as their chunks
        were.

        segments: the whole list. It is not read if no photo was unavailable.
        """
        again: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        for chunk, photo in sorted(self._unavailable):
            segment, position = split_chunk_id(chunk)
            again[segment][position].append(photo)
        if not again:
            return
        for number, photos in enumerate(segments):
            for position, numbers in again.get(number, {}).items():
                yield chunks.cut_again(photos, number, position, numbers)

    def is_again(self, chunk: pa.Table) -> bool:
        """Whether these rows are of photos that were unavailable before."""
        return chunk.column("lot")[0].as_py() in self._done

    def add(self, chunk: pa.Table, seconds: float) -> None:
        """Takes the rows of a whole chunk, or those of its photos that were unavailable, `seconds`
        after the start of this run; writes a piece if it is time.
        """
        if self.is_again(chunk):
            came = self._without(chunk, set(_places(chunks.unavailable(chunk))))
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
            rows = self._write(self._rows, again=False)
            self._rows = []
            self._count(rows)
        if self._rows_again:
            rows = self._write(self._rows_again, again=True)
            self._rows_again = []
            self._count_again(rows)

    def _write(self, tables: list[pa.Table], again: bool) -> pa.Table:
        rows = pa.concat_tables(tables)
        content = io.BytesIO()
        pq.write_table(rows, content, compression="zstd")
        storage.write_bytes(self.files.new_piece(content.getvalue(), again), content.getvalue())
        return rows

    def pieces(self) -> Iterator[pa.Table]:
        """The rows of every piece, each chunk once.

        Raises UserError for a piece that was damaged since `open`.
        """
        seen: set[int] = set()
        taken: set[Place] = set()
        for file in self._piece_files():
            try:
                rows = _read_piece(file)
            except _DamagedPieceError as error:
                remedy = "give the same command again: its photos are scored again"
                raise UserError(f"{file}: damaged since the run began ({error}); {remedy}") from None
            ids = set(pc.unique(rows.column("lot")).to_pylist())
            if is_again(file):
                yield self._first_to_come(rows, taken)
                continue
            if not seen.isdisjoint(ids):
                new = pa.array(sorted(ids - seen), pa.int64())
                rows = rows.filter(pc.is_in(rows.column("lot"), new))
            seen |= ids
            yield self._without(rows, self._came_later)

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

    def _first_to_come(self, rows: pa.Table, taken: set[Place]) -> pa.Table:
        """The rows of photos that came at last, without those in `taken`, which gets them."""
        missing = set(_places(chunks.unavailable(rows)))
        rows = self._without(rows, missing | taken)
        taken.update(_places(rows))
        return rows

    def _without(self, rows: pa.Table, places: set[Place]) -> pa.Table:
        if not places:
            return rows
        return rows.filter(pa.array([place not in places for place in _places(rows)], pa.bool_()))

    def _count(self, rows: pa.Table) -> None:
        self.counts.add(rows)
        self._done.update(pc.unique(rows.column("lot")).to_pylist())
        self._unavailable.update(_places(chunks.unavailable(rows)))
        last_chunks = rows.filter(rows.column("last")).column("lot")
        self._last.update(map(split_chunk_id, pc.unique(last_chunks).to_pylist()))

    def _count_again(self, rows: pa.Table) -> None:
        """Counts rows of photos that were unavailable before."""
        came = self._first_to_come(rows, set(self._came_later))
        if came.num_rows:
            self.counts.replace(came)
        self._unavailable.difference_update(_places(came))
        self._came_later.update(_places(came))


def _places(rows: pa.Table) -> list[Place]:
    """The place of each row's photo."""
    return list(zip(rows.column("lot").to_pylist(), rows.column("photo").to_pylist(), strict=True))


class _DamagedPieceError(Exception):
    """A piece that is not what was written."""


def _read_piece(uri: str) -> pa.Table:
    content = storage.read_bytes(uri)
    if not is_whole(uri, content):
        raise _DamagedPieceError("its checksum is another")
    try:
        rows = pq.read_table(io.BytesIO(content))
        missing = set(chunks.CHUNK_OF_ROW_SCHEMA.names) - set(rows.column_names)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _DamagedPieceError(one_line(error)) from None
    if missing:
        raise _DamagedPieceError(f"no column '{min(missing)}'")
    return rows


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
