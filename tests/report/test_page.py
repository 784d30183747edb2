"""Reading a table of scores again, and the page made of it."""

from __future__ import annotations

import base64
import io
import re
from collections import Counter
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ageray import report, schema
from ageray.faces.images import ImageError, decode
from ageray.score import results
from ageray.score.files import ScoreFiles
from ageray.score.page import score_report
from ageray.score.results import Digest, Photo
from ageray.synthetic import faces

EVIL = '<script>alert("x")<!-- & .jpg'
CARD = {
    "name": "tiny <b>",
    "protocol": "random 80/10/10",
    "metrics": {"mae": 5.4321, "images": 2000, "by_decade": [{"ages": "0-9"}]},
    "not_good_for": ["decisions about a person", "<i>anything</i> else"],
    "calibration": None,
}
SUMMARY = {
    "input": "photos",
    "images": 5,
    "images_per_second": 12.345,
    "seconds": 0.4,
    "finished": "2026-01-01 00:00 UTC",
    "model": {"name": "zoo:default", "identity": "0123456789abcdef", "network": "baseline"},
    "detector": {"search": "auto", "threshold": 0.6},
    "actors": {"actors": 1},
}


def row(
    image: str, face: int = 0, age: float | None = 30.0, error: str | None = None, **more: Any
) -> dict[str, Any]:
    ages = {
        "age": age,
        "age_low": None if age is None else age - 5,
        "age_high": None if age is None else age + 6.4,
    }
    return {
        "key": f"{image}#{face}",
        "image": image,
        "face": face,
        "error": error,
        "box": None,
        **ages,
        **more,
    }


def failure(image: str, error: str) -> dict[str, Any]:
    return row(image, -1, None, error)


def write(folder: Path, rows: list[dict[str, Any]], parts: int = 1) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for part in range(parts):
        pq.write_table(
            pa.Table.from_pylist(rows[part::parts], schema=schema.SCORES), folder / f"part-{part}.parquet"
        )
    return str(folder)


def jpeg(width: int = 400, height: int = 300) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.linspace(0, 255, width * height * 3).reshape(height, width, 3).astype(np.uint8)).save(
        file, "JPEG"
    )
    return file.getvalue()


class Page(HTMLParser):
    """A page as a browser reads it: elements with their attributes, and the text of the body."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.text += " "

    def handle_data(self, data: str) -> None:
        self.text += data if self.lasttag != "style" else ""

    def named(self, tag: str, kind: str = "") -> list[dict[str, str | None]]:
        return [
            result
            for name, result in self.elements
            if name == tag and kind in (result.get("class") or "").split(" ")
        ]


def digest_of(folder: str) -> Digest:
    return results.digest_of(pa.concat_tables(map(pq.read_table, sorted(Path(folder).glob("*.parquet")))))


def page_of(folder: str, summary: dict[str, Any] = SUMMARY, card: dict[str, Any] = CARD) -> tuple[str, Page]:
    score_report(ScoreFiles(folder), digest_of(folder), summary, card)
    html = Path(ScoreFiles(folder).page).read_text()
    return html, Page(html)


@pytest.fixture
def mixed(tmp_path: Path) -> str:
    """Scores of four photos that exist (one of them with an evil name, one with two faces, one
    without), and of a broken one."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("one.jpg", "two.jpg", "none.jpg", EVIL):
        (photos / name).write_bytes(jpeg())
    box = [-10.5, 29.5, 199.5, 179.5]
    rows = [
        row(str(photos / "one.jpg"), age=29.6, box=[99.5, 149.5, 199.5, 299.5]),
        row(str(photos / "two.jpg"), 1, age=71.2),
        row(str(photos / "two.jpg"), 0, age=8.4, box=box),
        row(str(photos / EVIL), age=44.0),
        failure(str(photos / "none.jpg"), schema.NO_FACE),
        failure(str(photos / "<i>broken.jpg"), "cannot decode: <u>not</u> an image"),
    ]
    return write(tmp_path / "scores", rows, parts=2)


# --- reading the table ----------------------------------------------------------------------------


def test_digest(mixed: str) -> None:
    digest = digest_of(mixed)
    assert (digest.images, digest.faces) == (5, 4)
    assert digest.errors == Counter({schema.NO_FACE: 1, "cannot decode": 1})
    assert {year: count for year, count in enumerate(digest.ages.tolist()) if count} == {
        8: 1,
        30: 1,
        44: 1,
        71: 1,
    }
    assert [(Path(photo.name).name, error) for photo, error in digest.failures] == [
        ("<i>broken.jpg", "cannot decode: <u>not</u> an image"),
        ("none.jpg", schema.NO_FACE),
    ]
    assert sorted(Path(photo.image).name for photo in digest.drawn) == sorted(
        ["one.jpg", "two.jpg", "none.jpg", EVIL]
    )


def test_digest_does_not_depend_on_the_order_of_rows_or_parts(tmp_path: Path) -> None:
    rows = [row(f"{n:04}.jpg", age=n % 130) for n in range(700)] + [
        failure(f"bad{n:04}.jpg", f"kind {n % 3}: x") for n in range(500)
    ]
    first = digest_of(write(tmp_path / "one", rows))
    other = digest_of(
        write(tmp_path / "other", [rows[n] for n in np.random.default_rng(0).permutation(len(rows))], 3)
    )
    assert (list(first.drawn), first.failures, first.errors) == (
        list(other.drawn),
        other.failures,
        other.errors,
    )
    assert (len(first.drawn), len(first.failures)) == (60, 200)
    assert first.failures == sorted(first.failures)
    assert first.ages.tolist() == other.ages.tolist()
    assert first.ages[results.OLDEST] == sum(n % 130 >= results.OLDEST for n in range(700))
    numbers = np.array([int(photo.name[:4]) for photo in first.drawn])
    assert 200 < numbers.mean() < 500  # spread over the collection, not its beginning


def test_rows_of_a_photo_come_by_the_number_of_the_face(mixed: str) -> None:
    digest = digest_of(mixed)
    [two] = [photo for photo in digest.drawn if photo.name.endswith("two.jpg")]
    assert [result["age"] for result in digest.drawn[two]] == pytest.approx([8.4, 71.2])


def test_photos_of_shards_are_drawn_from_one_shard_and_read_by_key(tmp_path: Path) -> None:
    shards = faces.write_faces_table(tmp_path / "shards", 8, shards=2)
    tables = {path: pq.read_table(path) for path in shards}
    rows = [row(path, key=key) for path, table in tables.items() for key in table.column("key").to_pylist()]
    digest = digest_of(write(tmp_path / "scores", rows))
    assert len(digest.drawn) == 8
    assert len({photo.image for photo in list(digest.drawn)[:4]}) == 1
    path, table = shards[1], tables[shards[1]]
    key, image = table.column("key")[2].as_py(), table.column("image")[2].as_py()
    assert dict(results.contents([Photo(path, key), Photo(str(tmp_path / "gone.jpg"))])) == {
        Photo(path, key): image
    }


# --- the page -------------------------------------------------------------------------------------


def test_page_loads_nothing_and_runs_nothing(mixed: str) -> None:
    html, page = page_of(mixed)
    sources = [result["src"] or "" for result in page.named("img")]
    assert len(sources) == 4
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert not {tag for tag, _ in page.elements} & {"script", "link", "iframe", "object", "i", "u"}
    assert not re.search(r"(src|href)\s*=\s*['\"]?\s*(https?:|//|file:)", html)
    assert not re.search(r"url\((?!#)", html)
    assert any("default-src 'none'" in (result.get("content") or "") for result in page.named("meta"))
    assert "prefers-color-scheme: dark" in html


def test_what_comes_from_outside_is_text(mixed: str) -> None:
    html, page = page_of(mixed, {**SUMMARY, "input": "<script>in</script>"})
    for text in (
        EVIL,
        "<i>broken.jpg",
        "cannot decode: <u>not</u> an image",
        "<i>anything</i> else",
        "tiny <b>",
        "<script>in</script>",
    ):
        assert text in page.text
        assert text not in html


def test_page_shows_ages_where_the_faces_are(mixed: str) -> None:
    _, page = page_of(mixed)
    styles = [result["style"] for result in page.named("span", "face")]
    # in a photo of 400 x 300: pixels 99.5 to 199.5 of 400 are 25 % to 50 %; what lies outside is
    # cut off
    assert sorted(map(str, styles)) == [
        "left:0%;top:10.0%;width:50.0%;height:50.0%",
        "left:25.0%;top:50.0%;width:25.0%;height:50.0%",
    ]
    text = " ".join(page.text.split())
    assert "30 25–36" in text
    assert "8 (3–15), 71 (66–78)" in text
    assert "All photos that could be decoded" in text
    assert "no face found none.jpg" in text.replace(str(Path(mixed).parent / "photos") + "/", "")


def test_page_tells_the_run_and_the_model(mixed: str) -> None:
    _, page = page_of(mixed)
    text = " ".join(page.text.split())
    for expected in (
        "Photos 5",
        "Faces 4",
        "Photos without ages 2",
        "Median age 30",
        "Photos a second 12.3",
        "zoo:default",
    ):
        assert expected in text
    for expected in (
        "Not good for decisions about a person",
        "protocol random 80/10/10",
        "metrics: mae 5.432",
        "metrics: images 2,000",
    ):
        assert expected in text
    assert "by decade" not in text
    assert "calibration" not in text
    assert "half are estimated at 30 years or younger, 90 % at between 8 and 71" in text


def test_page_is_the_same_each_time(mixed: str) -> None:
    assert page_of(mixed)[0] == page_of(mixed)[0]


def test_page_lists_the_first_errors_and_counts_all(tmp_path: Path) -> None:
    rows = [failure(f"{n:04}.jpg", "cannot read: not found") for n in range(250)]
    _, page = page_of(write(tmp_path, rows))
    assert "Photos that gave no face, 250 in all" in page.text
    assert "the first 200 by name" in page.text
    assert ("0199.jpg" in page.text, "0200.jpg" in page.text) == (True, False)
    assert not page.named("svg")
    assert not page.named("img")


def test_photo_that_has_gone_keeps_its_place(tmp_path: Path) -> None:
    _, page = page_of(write(tmp_path, [row("gone.jpg", box=[0, 0, 5, 5])]))
    text = " ".join(page.text.split())
    assert "not shown" in text
    assert "30 (25–36)" in text
    assert "None: every photo gave at least one face." in text


def test_thumbnail_is_small_and_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.new("RGB", (1200, 800)).save(file, "JPEG", exif=exif)
    source, width, height = report.thumbnail(file.getvalue(), side=200)
    assert (width, height) == (800, 1200)
    small = decode(base64.b64decode(source.partition("base64,")[2]))
    assert (small.width, small.height) == (133, 200)
    assert len(source) < 20_000
    with pytest.raises(ImageError):
        report.thumbnail(b"nothing")


def test_histogram_follows_the_page_colours_and_shows_every_year() -> None:
    svg = report.histogram_svg([0, 3, 0, 5], "age", "faces")
    assert svg.startswith("<svg")
    assert "var(--accent)" in svg
    assert "currentColor" in svg
    assert not set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", svg))
    bars = re.findall(r'<rect x="([^"]+)"[^>]* height="([^"]+)" style="fill: var\(--accent\)"', svg)
    heights = [float(height) for _, height in bars]
    assert len(bars) == 2  # an empty year has none
    assert heights[0] / heights[1] == pytest.approx(3 / 5, abs=1e-3)
    labels = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    assert labels[:6] == ["0", "1", "2", "3", "4", "5"]
    assert labels[6:] == [*map(str, range(0, 81, 10)), "age", "faces"]


@pytest.mark.parametrize(
    ("most", "labels"), [(0, [0, 1]), (7, range(8)), (8, [0, 2, 4, 6, 8]), (3401, range(0, 3401, 500))]
)
def test_counts_of_a_histogram_are_whole(most: int, labels: Sequence[int]) -> None:
    svg = report.histogram_svg([0, most, 0], "<age>", "faces")
    texts = re.findall(r'text-anchor: end">([^<]*)</text>', svg)
    assert texts == list(map(str, labels))
    assert "&lt;age&gt;" in svg
    assert "<age>" not in svg


def test_ids_of_a_figure_meet_no_other_ones_and_lead_somewhere() -> None:
    figures = []
    for height in (1, 2):
        figure, axes = report.new_figure()
        axes.bar([0], [height])
        figures.append(report.figure_svg(figure))
    ids = [set(re.findall(r' id="([^"]+)"', svg)) for svg in figures]
    assert all(ids)
    assert not ids[0] & ids[1]
    for own, svg in zip(ids, figures, strict=True):
        assert set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg)) == own
