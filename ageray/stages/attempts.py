"""Which photo of a task a process died on, from a file that the process writes as it goes.

Ray repeats a task whose process died, without end. A photo on which the process died twice in a run
(by a fault in a decoder, for lack of memory, or because the photo needed over 30 s of CPU) is not
tried again.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

import pyarrow as pa

from ageray.stages.columns import DECODED_SCHEMA, PHOTO_SCHEMA

MAX_DEATHS = 2
"""A photo on which the process died so often is not tried again."""

FATAL = "cannot decode: the process died on it twice"
"""The error of such a photo."""


class Attempts:
    """The attempts at a batch of photos in one run, this one included. A context: the file stays if
    the block does not end by itself."""

    def __init__(self, photos: pa.Table, run: str | None, stage: str = "") -> None:
        """run: name of the run; None for a caller that sees deaths itself. stage: tells two stages
        of a run apart."""
        self._log = None if run is None else _log(photos, f"{run}{stage}")
        self._deaths = Counter[str]()
        self._file: TextIO | None = None
        self.again = False
        """Whether an earlier attempt did not come to its end."""
        if self._log is not None and self._log.exists():
            self.again = True
            for line in self._log.read_text().splitlines():
                self._deaths.update(line.split()[-1:])

    def __enter__(self) -> Self:
        if self._log is not None:
            self._file = self._log.open("a")
        self._write("\n")
        return self

    def reach(self, number: int) -> bool:
        """Notes that this photo comes next. Returns False if it is not to be tried again."""
        self._write(f" {number}")
        return self._deaths[str(number)] < MAX_DEATHS

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._log is not None and self._file is not None:
            self._file.close()
            if kind is None:
                self._log.unlink(missing_ok=True)

    def _write(self, text: str) -> None:
        if self._file is not None:
            self._file.write(text)
            self._file.flush()


def _log(photos: pa.Table, name: str) -> Path:
    """The file with a line for each attempt at this batch: the numbers of the photos that it
    reached.

    Its name follows from the photos and their further columns, which tell batches of equal photos
    apart (a manifest may name a photo often).
    """
    digest = hashlib.sha256()
    own = {*PHOTO_SCHEMA.names, *DECODED_SCHEMA.names} - {"image", "key"}
    for column in photos.column_names:
        if column not in own:
            digest.update(f"{column} {photos.column(column).to_pylist()}\n".encode())
    return Path(tempfile.gettempdir(), f"ageray-{name}-{digest.hexdigest()[:16]}")
