"""The page of a scoring run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ageray import schema, storage
from ageray.faces.images import ImageError
from ageray.report.page import PAGE, describe_model, flat, render
from ageray.report.pictures import thumbnail
from ageray.report.plot import histogram_svg
from ageray.score import results
from ageray.score.results import Digest, Photo

_RUN = ("input", "seconds", "detector", "actors", "finished")  # of the summary; the rest stands further up


def score_report(folder: str, digest: Digest, summary: dict[str, Any], card: dict[str, Any]) -> None:
    """Writes `report.html` into a folder of scores.

    digest: what `scores.read_scores` made of the folder. summary: what goes into summary.json. card: the bundle's.
    """
    photos = list(_sheet(folder, digest.drawn, summary["input"]))
    histogram = (
        histogram_svg(digest.ages.tolist(), "estimated age (years)", "faces") if digest.faces else None
    )
    html = render(
        "score.html",
        title=f"Ages of the faces in {summary['input']}",
        summary=summary,
        figures=_figures(digest, summary),
        photos=photos,
        drawn=_drawn(len(photos), digest),
        histogram=histogram,
        spread=_spread(digest) if digest.faces else "",
        errors=[(kind, f"{count:,}") for kind, count in digest.errors.most_common()],
        listed=_listed(digest),
        failures=[
            {"name": _short(photo, summary["input"]), "error": error} for photo, error in digest.failures
        ],
        model=describe_model(card),
        run=list(flat({key: value for key, value in summary.items() if key in _RUN})),
    )
    storage.write_text(storage.join(folder, PAGE), html)


def _figures(digest: Digest, summary: dict[str, Any]) -> list[tuple[str, str]]:
    figures = [
        ("Photos", f"{digest.images:,}"),
        ("Faces", f"{digest.faces:,}"),
        ("Photos without ages", f"{digest.errors.total():,}"),
        ("Photos a second", f"{summary['images_per_second']:,.1f}"),
    ]
    return (
        [*figures[:3], ("Median age", f"{_quantile(digest, 0.5)}"), figures[3]] if digest.faces else figures
    )


def _quantile(digest: Digest, share: float) -> int:
    return int(np.searchsorted(np.cumsum(digest.ages), share * digest.faces))


def _spread(digest: Digest) -> str:
    low, middle, high = (_quantile(digest, share) for share in (0.05, 0.5, 0.95))
    return f"{digest.faces:,} faces; half are estimated at {middle} years or younger, 90 % at between {low} and {high}."


def _drawn(shown: int, digest: Digest) -> str:
    decoded = digest.images - sum(count for kind, count in digest.errors.items() if kind != schema.NO_FACE)
    what = (
        f"{shown} of {decoded:,} photos, drawn at random"
        if shown < decoded
        else "All photos that could be decoded"
    )
    return f"{what}: the age of each face in years, from left to right, and its 90 % interval."


def _listed(digest: Digest) -> str:
    total, shown = digest.errors.total(), len(digest.failures)
    which = f"the first {shown:,} by name" if shown < total else "all of them"
    return f"Photos that gave no face, {total:,} in all: how many of each kind, and {which}."


def _sheet(folder: str, photos: list[Photo], root: str) -> Iterator[dict[str, Any]]:
    """What `parts.sheet` shows of each photo."""
    found, images = results.rows_of(folder, photos), results.contents(photos)
    for photo in photos:
        rows, name = found[photo], _short(photo, root)
        try:
            source, width, height = thumbnail(images[photo])
        except (KeyError, ImageError):
            source, width, height = "", 1, 1  # gone or changed since it was scored
        faces = [_face(row, width, height) for row in rows if row["face"] >= 0]
        yield {
            "name": name,
            "source": source,
            "faces": faces,
            "note": rows[0]["error"] if not faces else None,
        }


def _face(row: dict[str, Any], width: int, height: int) -> dict[str, Any]:
    low, high = round(row["age_low"]), round(row["age_high"])
    return {"age": round(row["age"]), "range": f"{low}–{high}", "place": _place(row["box"], width, height)}


def _place(box: list[float] | None, width: int, height: int) -> dict[str, float] | None:
    """A box as percentages of the photo, cut to it; its coordinates count from the centre of the first pixel."""
    if box is None:
        return None
    x0, x1 = (min(max((x + 0.5) / width, 0), 1) * 100 for x in box[0::2])
    y0, y1 = (min(max((y + 0.5) / height, 0), 1) * 100 for y in box[1::2])
    return {
        "left": round(x0, 2),
        "top": round(y0, 2),
        "width": round(x1 - x0, 2),
        "height": round(y1 - y0, 2),
    }


def _short(photo: Photo, root: str) -> str:
    """The photo's name, without the folder that was scored."""
    folder = storage.absolute(root).rstrip("/") + "/"
    return photo.name.removeprefix(folder)
