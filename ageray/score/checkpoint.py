"""What a scoring run has done so far, on disk: how a run that was killed goes on without losing or repeating a face.

    OUT.unfinished/plan.json       what is scored with what; must be the same to go on
                   pieces/*.parquet  rows of scores of whole lots (`ageray.score.chunks`), with their labels
                   progress.json     how far the run is, for who watches it (`ageray.score.progress`)
                   result/           what becomes OUT, once every lot is there

Exactly once by construction: a piece appears whole or not at all and holds whole lots only; a lot in a piece is done and
is not scored again; should two pieces hold the same lot (two runs at once), the result takes one. Pieces are written
after 2 % of the time spent so far, so a kill costs about that and what was under way; they are small at first and are
put together to parts of a sensible size at the end.

Ray Data's own job checkpoint was considered: it keeps ids of rows and filters them after the read. Here a photo has as
many rows as faces, ids of rows are not known before, and rows of tables would be read again with all their bytes.
"""

from __future__ import annotations

import io
import json
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ageray import storage
from ageray.errors import UserError
from ageray.score import chunks

PLAN, PROGRESS, PIECES, RESULT = "plan.json", "progress.json", "pieces", "result"
UNFINISHED = ".unfinished"

_SHARE = 0.02  # of the time spent so far, between two pieces
_SECONDS = (2.0, 300.0)  # but at least and at most
_ROWS = 250_000  # of a piece, about


class ScoreCheckpoint:
    """The unfinished folder beside `target`. `photos`, `faces`, `errors` and `weight` count what its pieces hold, `seconds` is the time
    that earlier runs took."""

    def __init__(self, target: str) -> None:
        self.folder = target + UNFINISHED
        self.photos = self.faces = self.weight = 0
        self.errors: Counter[str] = Counter()
        self.seconds = 0.0
        self._done: set[int] = set()
        self._last: dict[int, int] = {}
        self._rows: list[pa.Table] = []
        self._written = 0.0

    @property
    def plan(self) -> dict[str, Any] | None:
        """What the folder was begun for; None where there is none."""
        return read_json(storage.join(self.folder, PLAN))

    def begin(self, plan: dict[str, Any]) -> None:
        """Makes the folder, or reads what it holds. Raises UserError if it cannot be written."""
        before = read_json(storage.join(self.folder, PROGRESS)) or {}
        self.seconds = float(before.get("seconds", 0))
        storage.remove_tree(storage.join(self.folder, RESULT))
        storage.make_folder(storage.join(self.folder, PIECES))
        storage.write_text(
            storage.join(self.folder, PLAN), json.dumps(plan, indent=1, ensure_ascii=False) + "\n"
        )
        for piece in self.pieces():
            self._count(piece)

    @property
    def done(self) -> frozenset[int]:
        """The lots that need not be scored again."""
        return frozenset(self._done)

    def done_of(self) -> dict[int, tuple[int, ...]]:
        """The positions of done lots in their stretches."""
        found: dict[int, list[int]] = defaultdict(list)
        for stretch, position in map(chunks.place, sorted(self._done)):
            found[stretch].append(position)
        return {stretch: tuple(positions) for stretch, positions in found.items()}

    def finished_segments(self) -> set[int]:
        """Stretches of which every lot is done."""
        return {
            stretch for stretch, done in self.done_of().items() if self._last.get(stretch) == len(done) - 1
        }

    def add(self, lot: pa.Table, seconds: float) -> None:
        """Takes the rows of a lot; writes a piece if it is time, `seconds` after the start of this run."""
        self._rows.append(lot)
        least, most = _SECONDS
        pause = min(most, max(least, _SHARE * (self.seconds + seconds)))
        if seconds - self._written >= pause or sum(rows.num_rows for rows in self._rows) >= _ROWS:
            self.flush(seconds)

    def flush(self, seconds: float) -> None:
        """Writes what is at hand as a piece."""
        self._written = seconds
        if not self._rows:
            return
        rows = pa.concat_tables(self._rows)
        content = io.BytesIO()
        pq.write_table(rows, content, compression="zstd")
        storage.write_bytes(
            storage.join(self.folder, PIECES, f"{uuid.uuid4().hex}.parquet"), content.getvalue()
        )
        self._rows = []
        self._count(rows)

    def pieces(self) -> Iterator[pa.Table]:
        """Every row of the pieces, each lot once."""
        folder = storage.join(self.folder, PIECES)
        seen: set[int] = set()
        for file in storage.list_files(folder, (".parquet",)) if storage.is_folder(folder) else []:
            rows = pq.read_table(io.BytesIO(storage.read_bytes(file)))
            here = set(pc.unique(rows.column("lot")).to_pylist())
            if not seen.isdisjoint(here):
                rows = rows.filter(pc.is_in(rows.column("lot"), pa.array(sorted(here - seen), pa.int64())))
            seen |= here
            yield rows

    def discard(self) -> None:
        """Removes the folder."""
        storage.remove_tree(self.folder)

    def _count(self, rows: pa.Table) -> None:
        first = chunks.first_rows(rows)
        self.photos += first.num_rows
        self.weight += pc.sum(first.column("weight")).as_py() or 0
        self.faces += rows.column("age").drop_null().length() if rows.num_rows else 0
        self.errors.update(reason.split(":")[0] for reason in first.column("error").drop_null().to_pylist())
        self._done.update(pc.unique(rows.column("lot")).to_pylist())
        ends = rows.filter(rows.column("last"))
        for stretch, position in map(chunks.place, pc.unique(ends.column("lot")).to_pylist()):
            self._last[stretch] = position


def read_json(uri: str) -> dict[str, Any] | None:
    """A file's JSON object; None where there is no such file, or it holds something else."""
    if not storage.exists(uri):
        return None
    try:
        content = json.loads(storage.read_text(uri))
    except (ValueError, UserError):
        return None
    return content if isinstance(content, dict) else None


def differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """What two plans differ in: `key: before, now after`."""
    found = []
    for key in sorted({*before, *now}):
        one, other = before.get(key), now.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            found += differences(one, other, f"{prefix}{key}.")
        elif one != other:
            found.append(f"{prefix}{key}: {json.dumps(one)}, now {json.dumps(other)}")
    return found
