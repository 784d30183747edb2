"""Fetches photos before they are needed. The report's driver needs it too, without a decoder's or
a network's libraries.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

from ageray.errors import UserError
from ageray.faces.images import ImageError, fetch
from ageray.storage import READERS

_BYTES_AHEAD = 192 * 2**20  # of photos that wait to be decoded, about


class _ReadAhead:
    """Fetches photos in threads before they are needed: READERS at once if they are small, two or
    three if they have hundreds of megabytes.
    """

    def __init__(self) -> None:
        self._largest = _BYTES_AHEAD // 3  # of the photos so far, and falling: bytes

    def contents(self, uris: list[str]) -> Iterator[bytes | UserError | ImageError]:
        """The photos in the order of `uris`, each as `fetch` gives it."""
        waiting: deque[Future[bytes | UserError | ImageError]] = deque()
        rest = iter(uris)
        with ThreadPoolExecutor(READERS) as pool:
            while True:
                count = min(READERS, max(2, _BYTES_AHEAD // max(1, self._largest)))
                for uri in islice(rest, max(0, count - len(waiting))):
                    waiting.append(pool.submit(_fetch, uri))
                if not waiting:
                    return
                content = waiting.popleft().result()
                if isinstance(content, bytes):
                    self._largest = max(len(content), self._largest * 3 // 4)
                yield content


read_ahead = _ReadAhead().contents


def _fetch(uri: str) -> bytes | UserError | ImageError:
    return fetch(uri) if uri else UserError("no path is given")
