"""The page of a scoring run: figures, a histogram of the ages, photos with their ages, errors, the
model's card.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from ageray import schema, storage
from ageray.faces.images import ImageError
from ageray.report.histogram import histogram_svg
from ageray.report.page import describe_model, flat, render
from ageray.report.pictures import thumbnail
from ageray.score import results
from ageray.score.files import ScoreFiles
from ageray.score.results import Digest, Photo, Row

_RUN = ("input", "passed_over", "unreadable_folders", "seconds", "detector", "actors", "finished")
"""Keys of the summary in the section "Run". The others are shown further up."""


def score_report(files: ScoreFiles, digest: Digest, summary: dict[str, Any], card: dict[str, Any]) -> None:
    """Writes the page into a scores folder.

    digest: of the whole table. summary: the content of _summary.json. card: the
    bundle's.
    """
    photos = list(_photos(digest.drawn, summary["input"]))
    histogram, spread = None, ""
    if digest.faces:
        histogram = histogram_svg(digest.ages.tolist(), "estimated age (years)", "faces")
        spread = _spread(digest)
    failures = []
    for photo, error in digest.failures:
        failures.append({"name": _short_name(photo, summary["input"]), "error": error})
    html = render(
        "score.html",
        title=f"Ages of the faces in {summary['input']}",
        summary=summary,
        figures=_figures(digest, summary),
        photos=photos,
        drawn=_drawn_text(len(photos), digest),
        histogram=histogram,
        spread=spread,
        errors=[(kind, f"{count:,}") for kind, count in digest.errors.most_common()],
        listed=_failures_text(digest),
        failures=failures,
        model=describe_model(card),
        run=list(flat({key: value for key, value in summary.items() if key in _RUN})),
    )
    storage.write_text(files.page, html)


def _figures(digest: Digest, summary: dict[str, Any]) -> list[tuple[str, str]]:
    figures = [
        ("Photos", f"{digest.images:,}"),
        ("Faces", f"{digest.faces:,}"),
        ("Photos without ages", f"{digest.errors.total():,}"),
    ]
    if digest.faces:
        figures.append(("Median age", f"{_quantile(digest, 0.5)}"))
    figures.append(("Photos a second", f"{summary['images_per_second']:,.1f}"))
    return figures


def _quantile(digest: Digest, share: float) -> int:
    """The lowest age, in whole years, that at least this share of the faces does not exceed."""
    return int(np.searchsorted(np.cumsum(digest.ages), share * digest.faces))


def _spread(digest: Digest) -> str:
    low, middle, high = _quantile(digest, 0.05), _quantile(digest, 0.5), _quantile(digest, 0.95)
    half = f"half are estimated at {middle} years or younger"
    return f"{digest.faces:,} faces; {half}, 90 % at between {low} and {high}."


def _drawn_text(count: int, digest: Digest) -> str:
    undecoded = digest.errors.total() - digest.errors[schema.NO_FACE]
    decoded = digest.images - undecoded
    which = "All photos that could be decoded"
    if count < decoded:
        which = f"{count} of {decoded:,} photos, drawn at random"
    return f"{which}: the age of each face in years, from left to right, and its 90 % interval."


def _failures_text(digest: Digest) -> str:
    total, count = digest.errors.total(), len(digest.failures)
    which = "all of them"
    if count < total:
        which = f"the first {count:,} by name"
    return f"Photos that gave no face, {total:,} in all: how many of each kind, and {which}."


def _photos(drawn: Mapping[Photo, list[Row]], location: str) -> Iterator[dict[str, Any]]:
    """What the macro `parts.sheet` shows of each photo."""
    thumbnails = {}
    for photo, content in results.contents(drawn):
        with suppress(ImageError):
            thumbnails[photo] = thumbnail(content)
    for photo, rows in drawn.items():
        # without a picture: deleted or changed since it was scored
        source, width, height = thumbnails.get(photo, ("", 1, 1))
        faces = [_face(row, width, height) for row in rows if row["age"] is not None]
        yield {
            "name": _short_name(photo, location),
            "source": source,
            "faces": faces,
            "note": None if faces else rows[0]["error"],
        }


def _face(row: dict[str, Any], width: int, height: int) -> dict[str, Any]:
    low, high = round(row["age_low"]), round(row["age_high"])
    return {"age": round(row["age"]), "range": f"{low}–{high}", "place": _place(row["box"], width, height)}


def _place(box: list[float] | None, width: int, height: int) -> dict[str, float] | None:
    """A box in percent of the photo, cut to the photo. Box coordinates count from the centre of the
    first pixel.
    """
    if box is None:
        return None
    left, right = _percent(box[0], width), _percent(box[2], width)
    top, bottom = _percent(box[1], height), _percent(box[3], height)
    return {
        "left": round(left, 2),
        "top": round(top, 2),
        "width": round(right - left, 2),
        "height": round(bottom - top, 2),
    }


def _percent(coordinate: float, size: int) -> float:
    return min(max((coordinate + 0.5) / size, 0), 1) * 100


def _short_name(photo: Photo, location: str) -> str:
    """The photo's name without the folder that was scored."""
    folder = storage.absolute(location).rstrip("/") + "/"
    return photo.name.removeprefix(folder)
