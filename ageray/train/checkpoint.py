"""The checkpoint of a run: one file, replaced whole, so that a run always finds its last good one and none is left behind.

It is written by a thread of its own from a copy in memory, while training goes on.
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
    """Writes states to a file, one after the other."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    def keep(self, state: dict[str, Any]) -> None:
        """Takes a copy and writes it while the caller goes on; waits for the one before. Raises as `check` does."""
        self.wait()
        self._thread = Thread(target=self._write, args=(_copy(state),), daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises UserError where the last state could not be written: the disk is full, the storage out of reach. The file is the one before."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Until the last state is written. Raises as `check` does."""
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
    """The last state kept, its tensors on the CPU; None where there is none. Raises UserError if the file is not one."""
    if not storage.exists(uri):
        return None
    try:
        state: dict[str, Any] = torch.load(
            io.BytesIO(storage.read_bytes(uri)), map_location="cpu", weights_only=True
        )
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
        return type(value)(_copy(member) for member in value)
    return value
