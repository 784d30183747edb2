"""What a scoring run would do and cost, without doing it: the listing, and a sample of the photos
that is scored here on one core.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from ageray import bundle, schema, storage
from ageray.errors import UserError
from ageray.experiment import Align, Detect
from ageray.faces.images import fetch
from ageray.score import chunks, read, write
from ageray.score.inputs import Inputs
from ageray.score.places import Places
from ageray.score.read import InputSummary
from ageray.stages.columns import PHOTO_SCHEMA, Search
from ageray.stages.detect import find_faces
from ageray.stages.predict import AgeFaces

SAMPLE = 64
"""Photos that are scored to estimate the rest."""

_SEGMENTS = 8  # of tables or tars, from which the sample comes
_KEYS = 1000  # of an answer to a listing
_FETCH_BYTES = 8 * 2**20  # of a tar, in one request
_ROW_GROUP_GETS = 3
_DONE_AT_ONCE = 16_384  # photos of a piece, about

RATES = {
    "core_hour": "money for an hour of a CPU core",
    "gpu_hour": "money for an hour of a GPU",
    "million_gets": "money for a million requests that read",
    "million_puts": "money for a million requests that write",
    "gigabyte": "money for reading a gigabyte",
    "gpu_photos": "photos that the network does in a second on one GPU (benchmarks/inference.py)",
}
"""What a user may say to get money and GPU hours."""


class Estimate(NamedTuple):
    """What a run would do.

    photos, faces, bytes: of all; estimates, but for the number of photos of lists and tables, and
    the bytes of tables and tars. sample: photos scored. unread, empty: of these, those that could
    not be read or decoded, and those without a face. detect, model: seconds of one core a photo.
    """

    photos: int
    faces: int
    bytes: int
    gets: int
    puts: int
    parts: int
    sample: int
    unread: int
    empty: int
    detect: float
    model: float

    @property
    def core_hours(self) -> float:
        """Of the whole run, if the network runs on CPUs."""
        return self.photos * (self.detect + self.model) / 3600


def estimate(
    locations: str | Sequence[str], model: str, detect: Detect | None = None, search: Search = "auto"
) -> Estimate:
    """Lists the input and scores a sample of it, spread over the whole. Raises UserError for the
    user's mistakes.
    """
    inputs = Inputs.open_all([locations] if isinstance(locations, str) else locations)
    summary = read.scan(inputs)
    loaded = bundle.load(model)
    photos, share = _sample(inputs, summary)
    settings = detect or loaded.experiment.data.detect
    rows, seconds = _scored(photos, model, loaded.experiment.align, settings, search)
    count = summary.photos
    if count is None:
        count = round(photos.num_rows * summary.weight / max(1, share))
    first = chunks.first_rows(rows)
    errors = first.column("error").drop_null().to_pylist()
    empty = errors.count(schema.NO_FACE)
    faces = rows.column("age").drop_null().length()
    scale = count / photos.num_rows
    sizes = [len(content) for content in photos.column("content").to_pylist() if content is not None]
    size = round(float(np.mean(sizes or [0])) * count)
    if inputs.kind == "tars":
        size = summary.weight
    return Estimate(
        photos=count,
        faces=round(faces * scale),
        bytes=size,
        gets=_gets(inputs, summary, photos, count, size),
        puts=2 * (count // _DONE_AT_ONCE + 1) + 3,
        parts=-(-max(1, round(faces * scale)) // write.ROWS),
        sample=photos.num_rows,
        unread=len(errors) - empty,
        empty=empty,
        detect=seconds[0] / photos.num_rows,
        model=seconds[1] / photos.num_rows,
    )


def text(plan: Estimate, rates: Mapping[str, float]) -> str:
    """The estimate for the terminal. rates: some of RATES."""
    share = f"{plan.unread} of {plan.sample} of a sample cannot be read, {plan.empty} show no face"
    seconds = (
        f"{plan.detect * 1000:.1f} ms a photo to decode and detect, {plan.model * 1000:.1f} ms the model"
    )
    lines = [
        f"photos    {plan.photos:,} ({share})",
        f"bytes     about {plan.bytes / 1e9:,.2f} GB",
        f"faces     about {plan.faces:,}, in {plan.parts:,} part{'s' * (plan.parts > 1)}",
        f"cores     about {plan.core_hours:,.2f} core hours ({seconds})",
    ]
    costs = {
        "cores": plan.core_hours * rates.get("core_hour", 0),
        "requests": (
            plan.gets / 1e6 * rates.get("million_gets", 0) + plan.puts / 1e6 * rates.get("million_puts", 0)
        ),
        "bytes": plan.bytes / 1e9 * rates.get("gigabyte", 0),
    }
    if "gpu_photos" in rates:
        gpu_hours = plan.photos / rates["gpu_photos"] / 3600
        cores = plan.photos * plan.detect / 3600
        lines.append(f"GPUs      or about {gpu_hours:,.2f} GPU hours and {cores:,.2f} core hours")
        costs["cores"] = cores * rates.get("core_hour", 0)
        costs["GPUs"] = gpu_hours * rates.get("gpu_hour", 0)
    lines.append(
        f"requests  about {plan.gets:,} that read, {plan.puts:,} that write, and one a second of progress"
    )
    if rates:
        each = ", ".join(f"{name} {cost:,.2f}" for name, cost in costs.items())
        lines.append(f"money     about {sum(costs.values()):,.2f} ({each})")
    return "\n".join(lines)


def _sample(inputs: Inputs, summary: InputSummary) -> tuple[pa.Table, int]:
    """Rows of PHOTO_SCHEMA, spread over the input, and their weight."""
    if summary.places is not None:
        photos = _fetched(summary.places)
        return photos, photos.num_rows
    segments = [summary.segments[place] for place in _spread(len(summary.segments), _SEGMENTS)]
    tables: list[pa.Table] = []
    for segment in segments:
        rest = -(-SAMPLE // len(segments))
        for chunk in read.read_segments(read.segment_table(segment), inputs.columns):
            tables.append(chunk.slice(0, rest))
            rest -= tables[-1].num_rows
            if rest <= 0:
                break
    if not tables:
        raise UserError(f"{inputs.uri}: holds no photo; check that its tars do")
    rows = pa.concat_tables(tables)
    weights: list[int] = rows.column("weight").to_pylist()
    return rows.select(PHOTO_SCHEMA.names), sum(weights)


def _fetched(places: Places) -> pa.Table:
    rows = []
    for uri in places.take(_spread(places.photos, SAMPLE)).column("image").to_pylist():
        content = fetch(uri) if uri else UserError("no path is given")
        if isinstance(content, bytes):
            rows.append({"image": uri, "content": content})
        else:
            rows.append({"image": uri, "problem": str(content)})
    return pa.Table.from_pylist(rows, schema=PHOTO_SCHEMA)


def _spread(count: int, most: int) -> list[int]:
    """Up to `most` numbers below `count`, evenly spread."""
    most = min(most, count)
    return [int((number + 0.5) * count / most) for number in range(most)]


def _scored(
    photos: pa.Table, model: str, align: Align, detect: Detect, search: Search
) -> tuple[pa.Table, tuple[float, float]]:
    """Rows of scores of the sample; CPU seconds of the two stages."""
    ages = AgeFaces(model, threads=1)

    def stages(part: pa.Table) -> tuple[pa.Table, tuple[float, float]]:
        started = time.process_time()
        faces = find_faces(part, align, detect, search, uuid.uuid4().hex[:12])
        middle = time.process_time()
        rows = ages(faces)
        return rows, (middle - started, time.process_time() - middle)

    stages(photos.slice(0, 4))  # the first batch loads the detector
    return stages(photos)


def _gets(inputs: Inputs, summary: InputSummary, photos: pa.Table, count: int, size: int) -> int:
    """Requests that read, if the input is on a store."""
    if not any(map(storage.is_remote, [inputs.uri, *photos.column("image").to_pylist()])):
        return 0
    if summary.places is not None:
        return count + count // _KEYS
    if inputs.kind == "tars":
        return 3 * len(inputs.files) + size // _FETCH_BYTES
    return len(inputs.files) + _ROW_GROUP_GETS * len(summary.segments)
