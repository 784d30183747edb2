"""The requests that one ingress replica has in flight: their bodies, their clients, its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ageray.serve.errors import ApiError

SLOW = 2.0
"""Seconds after which a body that is still coming counts as slow."""

_SLOW_OF_CLIENT = 4  # slow bodies of one client; the next body is refused
_POLL = 0.05  # seconds


class Traffic:
    """Counts requests, admits bodies, and tells when all is answered."""

    def __init__(self, bodies: int) -> None:
        """bodies: that may come at once. While so many come, others still get pages and health."""
        self.active = 0
        self.draining = False
        self._most = bodies
        self._bodies: dict[object, tuple[str, float]] = {}

    @contextmanager
    def request(self) -> Iterator[None]:
        """Counts a request. Raises ApiError (503) when the service is ending."""
        if self.draining:
            raise ApiError(503, "stopping", "the service is ending; ask another one", {"Connection": "close"})
        self.active += 1
        try:
            yield
        finally:
            self.active -= 1

    @contextmanager
    def body(self, client: str) -> Iterator[None]:
        """Admits the body of a request while it comes. Raises ApiError (503): too many are coming,
        or too many slow ones from this client.
        """
        now, slow = time.monotonic(), 0
        for owner, since in self._bodies.values():
            slow += owner == client and now - since > SLOW
        if slow >= _SLOW_OF_CLIENT or len(self._bodies) >= self._most:
            text = "too many bodies are still coming; send them faster, or fewer at once"
            raise ApiError(503, "busy", text, {"Retry-After": "5", "Connection": "close"})
        ticket = object()
        self._bodies[ticket] = client, now
        try:
            yield
        finally:
            del self._bodies[ticket]

    async def drain(self, seconds: float) -> int:
        """Refuses further requests and waits until those in flight are answered, at most `seconds`;
        returns how many are not.
        """
        self.draining = True
        end = time.monotonic() + seconds
        while self.active and time.monotonic() < end:
            await asyncio.sleep(_POLL)
        return self.active
