"""The checkpoint of a run: one file, replaced whole, so that the last good one is always there.

A thread writes it from a copy in memory while training goes on.
"""

from __future__ import annotations

import io
import pickle
from threading import Thread
from typing import Any

import torch
from torch import Tensor

from ageray import storage
from ageray.errors import UserError


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
            storage.write_bytes(self._uri, content.getvalue())
        except BaseException as error:
            self._error = error


def load(uri: str) -> dict[str, Any] | None:
    """The last saved state, its tensors on the CPU; None if there is no file.

    Raises UserError if the file is no checkpoint.
    """
    if not storage.exists(uri):
        return None
    content = io.BytesIO(storage.read_bytes(uri))
    try:
        state: dict[str, Any] = torch.load(content, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{uri}: is no checkpoint ({reason}); delete it, or start anew with --fresh"
        ) from None
    return state


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {name: _copy(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_copy, value))
    return value
