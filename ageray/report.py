"""Pages that a reader opens in a browser: one file, nothing loaded from elsewhere, light or dark as the browser asks.

`render`, `new_figure`, `figure_svg`, `thumbnail` and `describe_model` serve every report; the rest is of a scoring run.
Whatever comes from outside (file names, error messages, a card's text) is escaped by the templates.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from ageray import schema, scores, storage
from ageray.data.images import ImageError, decode
from ageray.scores import Digest, Photo

PAGE = "report.html"

_SIDE = 320  # pixels of a thumbnail's longer side: sharp on the sheet, some 15 kB
# Colours that the page replaces by its own, so that a figure follows light and dark.
_INK, _ACCENT = "#010203", "#040506"
_RUN = ("input", "seconds", "detector", "actors", "finished")  # of the summary; the rest stands further up


# --- for every report -----------------------------------------------------------------------------------------------


def render(template: str, **values: Any) -> str:
    """The page of a template in `ageray/templates`; text is escaped, Markup is not."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(template).render(values)


def figure_svg(figure: Figure) -> Markup:
    """A matplotlib figure as inline SVG. What is drawn in `ink()` and `accent()` takes the page's colours."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ageray"}):
        figure.savefig(buffer, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor").replace(_ACCENT, "var(--accent)")
    return Markup(text)


def new_figure(width: float = 7.0, height: float = 2.6) -> tuple[Figure, Any]:
    """An empty figure, inches, and its axes in the page's style."""
    figure = Figure(figsize=(width, height))
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_INK)
    axes.tick_params(colors=_INK, labelsize=9)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=_INK, fontsize=9)
    axes.grid(axis="y", color=_INK, alpha=0.12)
    axes.set_axisbelow(True)
    return figure, axes


def histogram_svg(counts: Sequence[int], xlabel: str, ylabel: str) -> Markup:
    """Bars of `counts`, one a year from 0, up to the last that is not empty."""
    figure, axes = new_figure()
    last = max((year for year, count in enumerate(counts) if count), default=0)
    axes.bar(range(last + 1), counts[: last + 1], width=0.86, color=_ACCENT)
    axes.set_xlim(-1, max(last + 1, 80))
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    return figure_svg(figure)


def thumbnail(content: bytes, side: int = _SIDE) -> tuple[str, int, int]:
    """A photo as a small JPEG data uri, and its upright full width and height. Raises ImageError if there is none."""
    photo = decode(content, max_side=side)
    image = Image.fromarray(photo.pixels)
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode(), photo.width, photo.height


def describe_model(card: dict[str, Any]) -> dict[str, Any]:
    """A bundle's card for `parts.model`: `limits` (what it is not good for) and `rows` of name and text."""
    limits = card.get("not_good_for") or []
    rest = {key: value for key, value in card.items() if key != "not_good_for"}
    return {"limits": [limits] if isinstance(limits, str) else limits, "rows": list(_flat(rest))}


def _flat(card: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in card.items():
        name = f"{prefix}{key.replace('_', ' ')}"
        if isinstance(value, dict):
            yield from _flat(value, f"{name}: ")
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            continue  # tables, such as errors by decade
        elif value not in (None, "", []):
            yield name, ", ".join(map(_text, value)) if isinstance(value, list) else _text(value)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# --- of a scoring run -----------------------------------------------------------------------------------------------


def score_report(folder: str, digest: Digest, summary: dict[str, Any], card: dict[str, Any]) -> None:
    """Writes `report.html` into a folder of scores.

    digest: what `scores.read_scores` made of the folder. summary: what goes into summary.json. card: the bundle's.
    """
    photos = list(_sheet(folder, digest.drawn, summary["input"]))
    histogram = histogram_svg(digest.ages.tolist(), "estimated age (years)", "faces") if digest.faces else None
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
        failures=[{"name": _short(photo, summary["input"]), "error": error} for photo, error in digest.failures],
        model=describe_model(card),
        run=list(_flat({key: value for key, value in summary.items() if key in _RUN})),
    )
    storage.write_text(storage.join(folder, PAGE), html)


def _figures(digest: Digest, summary: dict[str, Any]) -> list[tuple[str, str]]:
    figures = [
        ("Photos", f"{digest.images:,}"),
        ("Faces", f"{digest.faces:,}"),
        ("Photos without ages", f"{digest.errors.total():,}"),
        ("Photos a second", f"{summary['images_per_second']:,.1f}"),
    ]
    return [*figures[:3], ("Median age", f"{_quantile(digest, 0.5)}"), figures[3]] if digest.faces else figures


def _quantile(digest: Digest, share: float) -> int:
    return int(np.searchsorted(np.cumsum(digest.ages), share * digest.faces))


def _spread(digest: Digest) -> str:
    low, middle, high = (_quantile(digest, share) for share in (0.05, 0.5, 0.95))
    return f"{digest.faces:,} faces; half are estimated at {middle} years or younger, 90 % at between {low} and {high}."


def _drawn(shown: int, digest: Digest) -> str:
    decoded = digest.images - sum(count for kind, count in digest.errors.items() if kind != schema.NO_FACE)
    what = f"{shown} of {decoded:,} photos, drawn at random" if shown < decoded else "All photos that could be decoded"
    return f"{what}: the age of each face in years, from left to right, and its 90 % interval."


def _listed(digest: Digest) -> str:
    total, shown = digest.errors.total(), len(digest.failures)
    which = f"the first {shown:,} by name" if shown < total else "all of them"
    return f"Photos that gave no face, {total:,} in all: how many of each kind, and {which}."


def _sheet(folder: str, photos: list[Photo], root: str) -> Iterator[dict[str, Any]]:
    """What `parts.sheet` shows of each photo."""
    found, images = scores.rows_of(folder, photos), scores.contents(photos)
    for photo in photos:
        rows, name = found[photo], _short(photo, root)
        try:
            source, width, height = thumbnail(images[photo])
        except (KeyError, ImageError):
            source, width, height = "", 1, 1  # gone or changed since it was scored
        faces = [_face(row, width, height) for row in rows if row["face"] >= 0]
        yield {"name": name, "source": source, "faces": faces, "note": rows[0]["error"] if not faces else None}


def _face(row: dict[str, Any], width: int, height: int) -> dict[str, Any]:
    low, high = round(row["age_low"]), round(row["age_high"])
    return {"age": round(row["age"]), "range": f"{low}–{high}", "place": _place(row["box"], width, height)}


def _place(box: list[float] | None, width: int, height: int) -> dict[str, float] | None:
    """A box as percentages of the photo, cut to it; its coordinates count from the centre of the first pixel."""
    if box is None:
        return None
    x0, x1 = (min(max((x + 0.5) / width, 0), 1) * 100 for x in box[0::2])
    y0, y1 = (min(max((y + 0.5) / height, 0), 1) * 100 for y in box[1::2])
    return {"left": round(x0, 2), "top": round(y0, 2), "width": round(x1 - x0, 2), "height": round(y1 - y0, 2)}


def _short(photo: Photo, root: str) -> str:
    """The photo's name, without the folder that was scored."""
    folder = storage.absolute(root).rstrip("/") + "/"
    return photo.name.removeprefix(folder)
