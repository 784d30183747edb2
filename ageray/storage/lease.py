"""Which process works in a folder, so that two runs never write there at once.

The owner of the lease writes `lease-000001.json` in the folder and renews it every two seconds. A
lease that is not renewed for 10 seconds, or whose process on this machine has ended, is expired.
The next run then takes the next number. It creates that file only if nobody else has
(`storage.create`), so that of two runs one gets it. An owner that sees a higher number, or no file
of its own, has lost the lease (it was suspended, or its store was away) and stops: `Lease.check`
raises.

No clocks are compared: a run that finds a lease watches whether it is renewed.
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ageray import storage
from ageray.errors import StoreError, UserError

_PERIOD = 2.0  # seconds between two renewals
_EXPIRY = 10.0  # seconds without a renewal after which a lease has expired
_LOOK = 0.5  # seconds between two looks at another run's lease
_NAME = re.compile(r"lease-(\d{6})\.json")


def is_lease(name: str) -> bool:
    """Whether a file of this name is a lease."""
    return _NAME.fullmatch(name) is not None


_TAKEN = "is writing there"


def is_taken(error: UserError) -> bool:
    """Whether `Lease` raised this because another run has the lease."""
    return _TAKEN in str(error)


class Lease:
    """The right to write in a folder. Inside a `with` block a thread renews it."""

    def __init__(self, folder: str, what: str = "run") -> None:
        """Takes the lease of `folder`, which is made. what: a word for messages.

        Raises UserError if another run has the lease and renews it. Waits up to 10 s to see that.
        """
        self._folder, self._what = folder, what
        self._id = uuid.uuid4().hex
        self._beat = 0
        self._lost = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        old = _names(folder)
        last = 0
        if old:
            last = _number(old[-1])
            self._wait_for_expiry(old[-1])
        self._number = last + 1
        if not storage.create(self._uri, self._content()) or not self._is_own():
            raise self._taken(_read(self._uri))
        storage.remove(folder, old)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def check(self) -> None:
        """Raises UserError if another run has taken the lease."""
        if self._lost:
            raise UserError(
                f"{self._folder}: another {self._what} has taken over, because this one did not get to write "
                f"there for {_EXPIRY:g} s; leave the work to the other one"
            )

    def release(self) -> None:
        """Ends the lease; the next run need not wait."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        with suppress(UserError):  # it expires by itself
            if self._is_own():
                storage.remove(self._folder, [_name(self._number)])

    @property
    def _uri(self) -> str:
        return storage.join(self._folder, _name(self._number))

    def _content(self) -> bytes:
        self._beat += 1
        record = {
            "id": self._id,
            "beat": self._beat,
            "process": os.getpid(),
            "started": start_of(os.getpid()),
            "host": socket.gethostname(),
        }
        return json.dumps(record).encode() + b"\n"

    def _is_own(self) -> bool:
        return _read(self._uri).get("id") == self._id

    def _renew(self) -> None:
        while not self._stop.wait(_PERIOD):
            try:
                newer = storage.exists(storage.join(self._folder, _name(self._number + 1)))
                if newer or not self._is_own():
                    self._lost = True
                    return
                storage.write_bytes(self._uri, self._content())
            except UserError:  # the store is away, or full: others see no renewal either
                continue

    def _wait_for_expiry(self, name: str) -> None:
        """Returns when the lease `name` has expired. Raises UserError if it is renewed."""
        uri = storage.join(self._folder, name)
        first = _read(uri)
        if first.get("host") == socket.gethostname() and not _is_running(first):
            return
        end = time.monotonic() + _EXPIRY
        while time.monotonic() < end:
            time.sleep(_LOOK)
            now = _read(uri)
            if not now:
                return  # released
            if now.get("beat") != first.get("beat") or now.get("id") != first.get("id"):
                raise self._taken(now)

    def _taken(self, record: dict[str, Any]) -> UserError:
        owner = f"process {record.get('process')} on {record.get('host')}"
        remedy = "wait until it is done, or stop it"
        return UserError(f"{self._folder}: another {self._what} {_TAKEN} ({owner}); {remedy}")


def _names(folder: str) -> list[str]:
    """The leases in a folder, the newest last."""
    return sorted(filter(is_lease, storage.names_below(folder)))


def _name(number: int) -> str:
    return f"lease-{number:06d}.json"


def _number(name: str) -> int:
    match = _NAME.fullmatch(name)
    assert match is not None
    return int(match.group(1))


def _read(uri: str) -> dict[str, Any]:
    """The content of a lease; empty if there is none, or if it is damaged."""
    try:
        content = json.loads(storage.read_bytes(uri))
    except StoreError:
        raise
    except (UserError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_running(record: dict[str, Any]) -> bool:
    """Whether the process of a lease of this machine still runs."""
    process = record.get("process")
    if not isinstance(process, int):
        return True  # a damaged lease: not known
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True  # it runs, as another user
    return start_of(process) == record.get("started")


def start_of(process: int) -> str | None:
    """When a process of this machine started, in the kernel's words: ids are used again. None for a
    process that has ended, and where the system does not tell.
    """
    with suppress(OSError, IndexError):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return fields[19] if fields[0] != "Z" else None
    return None
