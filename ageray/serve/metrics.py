"""Counters of the service, and their text in Prometheus' exposition format (version 0.0.4).

Every ingress replica counts for itself. `batches.BatchJobs`, of which there is one, adds them up.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

FAMILIES = {
    "ageray_requests_total": ("counter", "Answered requests by route and status."),
    "ageray_request_seconds": ("histogram", "Seconds from a request's first byte to its answer's last."),
    "ageray_requests_in_progress": ("gauge", "Requests that are not answered yet."),
    "ageray_images_total": ("counter", "Images of answered requests."),
    "ageray_faces_total": ("counter", "Faces that got an age."),
    "ageray_image_errors_total": ("counter", "Images without a face and faces without an age, by kind."),
    "ageray_batches": ("gauge", "Scoring jobs by state; waiting ones are the queue."),
}
"""Each family of series, with its type and what it is."""

BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper ends of the histogram's buckets, in seconds."""

_FRESH_SECONDS = 30.0  # gauges of a replica that was silent for longer do not count


class Metrics:
    """The counters of one replica: the text of a series to its value."""

    def __init__(self) -> None:
        self._values: Counter[str] = Counter()

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Adds to a series of FAMILIES."""
        self._values[series(name, **labels)] += amount  # type: ignore[assignment]

    @contextmanager
    def request(self) -> Iterator[list[str]]:
        """Counts one request. The caller appends its route and its status to the list."""
        answer: list[str] = []
        start = time.monotonic()
        self.add("ageray_requests_in_progress")
        try:
            yield answer
        finally:
            self.add("ageray_requests_in_progress", -1)
            if len(answer) == 2:  # otherwise the connection was lost before an answer
                route, status = answer
                self.add("ageray_requests_total", route=route, status=status)
                self._observe("ageray_request_seconds", time.monotonic() - start, route)

    def _observe(self, name: str, seconds: float, route: str) -> None:
        for end in BUCKETS:
            self.add(f"{name}_bucket", float(seconds <= end), route=route, le=f"{end:g}")
        self.add(f"{name}_bucket", route=route, le="+Inf")
        self.add(f"{name}_sum", seconds, route=route)
        self.add(f"{name}_count", route=route)

    def values(self) -> dict[str, float]:
        """All series with their values."""
        return dict(self._values)


class Total:
    """The sum over all replicas."""

    def __init__(self) -> None:
        self._replicas: dict[str, tuple[float, dict[str, float]]] = {}

    def add(self, replica: str, values: dict[str, float]) -> dict[str, float]:
        """Takes the present values of a replica and returns the sums. Counters of replicas that
        have ended stay in them, so that no sum falls."""
        now = time.monotonic()
        self._replicas[replica] = (now, values)
        total: Counter[str] = Counter()
        for seen, parts in self._replicas.values():
            for name, value in parts.items():
                gauge = FAMILIES.get(name.partition("{")[0], ("counter",))[0] == "gauge"
                if not gauge or now - seen < _FRESH_SECONDS:
                    total[name] += value  # type: ignore[assignment]
        return dict(total)


def series(name: str, **labels: str) -> str:
    """The text of a series: its name and its labels."""
    if not labels:
        return name
    parts = []
    for key, value in labels.items():
        escaped = value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
        parts.append(f'{key}="{escaped}"')
    return f"{name}{{{','.join(parts)}}}"


def text(values: Mapping[str, float]) -> str:
    """The page that Prometheus reads. Families without a series are there too, as comments."""
    lines = []
    for family, (kind, what) in FAMILIES.items():
        lines += [f"# HELP {family} {what}", f"# TYPE {family} {kind}"]
        for name, value in values.items():
            if _family(name.partition("{")[0]) == family:
                lines.append(f"{name} {float(value)!r}")
    return "\n".join(lines) + "\n"


def _family(name: str) -> str:
    for ending in ("_bucket", "_sum", "_count"):
        if name.removesuffix(ending) in FAMILIES:
            return name.removesuffix(ending)
    return name
