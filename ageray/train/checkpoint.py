"""The checkpoint of a run: one file, replaced whole, and beside it the one before.

A thread writes it from a copy in memory while training goes on. The file is a zip archive, whose
checksums `load` verifies: PyTorch itself does not, and a flipped bit would train on with other
numbers. In place of a damaged checkpoint the one before is taken.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from threading import Thread
from typing import Any

import torch
from torch import Tensor

from ageray import storage
from ageray.errors import DamagedError, UserError, one_line


class AsyncCheckpointer:
    """Writes states to one file, one after the other."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    def save(self, state: dict[str, Any]) -> None:
        """Copies `state` and writes the copy in the background, after the one before is written.

        Raises as `check` does.
        """
        self.wait()
        self._thread = Thread(target=self._write, args=(_copy(state),), daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises UserError, once, if the last state could not be written (disk full, storage gone).

        The file then holds the state before.
        """
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Waits until the last state is written. Raises as `check` does."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def _write(self, state: dict[str, Any]) -> None:
        try:
            content = io.BytesIO()
            torch.save(state, content)
            if storage.exists(self._uri):
                storage.copy_within(self._uri, before(self._uri))
            storage.write_bytes(self._uri, content.getvalue())
        except BaseException as error:
            self._error = error


def before(uri: str) -> str:
    """The file of the checkpoint before the last one."""
    stem, dot, ending = uri.rpartition(".")
    return f"{stem}.before{dot}{ending}"


def load(uri: str, tell: Callable[[str], None] = print) -> dict[str, Any] | None:
    """The last saved state, its tensors on the CPU; None if there is none.

    A damaged file is named to `tell`, and the state before it is returned. Raises UserError if that
    is damaged too, or missing.
    """
    if not storage.exists(uri):
        return None
    try:
        return _read(uri)
    except DamagedError as error:
        damage = str(error)
    older = before(uri)
    if storage.exists(older):
        try:
            state = _read(older)
        except DamagedError as error:
            raise UserError(f"{damage}; so is the one before ({error}); start anew with --fresh") from None
        tell(f"{damage}; going on from the one before, {older.rpartition('/')[2]}")
        return state
    raise UserError(f"{damage}; delete it, or start anew with --fresh")


def _read(uri: str) -> dict[str, Any]:
    """The state in a file. Raises DamagedError if it is not what was saved."""
    content = io.BytesIO(storage.read_bytes(uri))
    try:
        with zipfile.ZipFile(content) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise DamagedError(f"{uri}: damaged ({damaged} in it has another checksum)")
        content.seek(0)
        state: dict[str, Any] = torch.load(content, map_location="cpu", weights_only=True)
    except DamagedError:
        raise
    except Exception as error:  # zipfile and PyTorch raise many types for damaged bytes
        raise DamagedError(f"{uri}: is no checkpoint, or damaged ({one_line(error)[:120]})") from None
    return state


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {name: _copy(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_copy, value))
    return value
