"""The pages of an evaluation, a comparison and a matrix: sections as the data has them, nothing
loaded, everything escaped."""

from __future__ import annotations

import base64
import io
import re
import sys
from html import unescape
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ageray import metrics, report
from ageray.audit import audit
from ageray.evaluate.page import embedding
from ageray.evaluate.page.comparison import comparison_report, letter, matrix_report, verdict
from ageray.evaluate.page.evaluation import evaluation_report
from ageray.faces.images import decode
from ageray.report import pictures
from ageray.report.cells import percent, probability, years
from ageray.synthetic import faces as synthetic_faces

EVIL = "<script>alert('x')</script>&\"$"
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
CARD = {"name": "tiny <b>", "not_good_for": ["<i>anything</i>"], "metrics": {"mae": 5.0}}
RESAMPLES = 40


class Page(HTMLParser):
    """A page as a browser reads it: elements with attributes, ids of sections, and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html, self.text = html, ""
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.text += " "

    def handle_data(self, data: str) -> None:
        self.text += data if self.lasttag != "style" else ""

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [result for name, result in self.elements if name == tag]

    @property
    def sections(self) -> list[str]:
        return [str(result["id"]) for result in self.named("section")]


def faces(count: int, seed: int = 0, labels: bool = True, age: float | None = None) -> pa.Table:
    """Predictions of `count` made-up faces; the error grows with the age."""
    rng = np.random.default_rng(seed)
    true = np.full(count, age) if age is not None else rng.gamma(3, 11, count).clip(0, 100).round()
    spread = 2 + true / 15
    predicted = true + rng.normal(0, 1, count) * spread
    names = [f"p{number // 4}" for number in range(count)]
    columns: dict[str, Any] = {
        "key": [f"{EVIL if number == 0 else 'face'}-{number:05d}" for number in range(count)],
        "age": pa.array(true, pa.float32()),
        "error": [""] * count,
        "predicted": pa.array(predicted, pa.float32()),
        "low": pa.array(predicted - 1.6 * spread, pa.float32()),
        "high": pa.array(predicted + 1.6 * spread, pa.float32()),
        "subject": pa.array(names if labels else [None] * count, pa.string()),
        "gender": pa.array(rng.choice(["female", "male"], count) if labels else [None] * count, pa.string()),
        "group": pa.array(
            [EVIL if number % 2 else None for number in range(count)] if labels else [None] * count,
            pa.string(),
        ),
    }
    return pa.table(columns)


def full(table: pa.Table, **more: Any) -> dict[str, Any]:
    true, predicted, low, high = (
        table.column(name).to_numpy() for name in ("age", "predicted", "low", "high")
    )
    quantiles = predicted[:, None] + (high - low)[:, None] * (np.asarray(LEVELS) - 0.5)
    labels = {name: table.column(name).to_pylist() for name in ("subject", "gender", "group")}
    known_labels = {
        name: values for name, values in labels.items() if any(value is not None for value in values)
    }
    tested = metrics.Tested(
        true, predicted, low, high, **known_labels, quantiles=quantiles, levels=LEVELS, **more
    )
    return metrics.full_report(tested, 30.0, resamples=RESAMPLES)


def audited(train: pa.Table, test: pa.Table) -> dict[str, Any]:
    """An audit in which the first faces of both sides are the same picture."""

    def sides(table: pa.Table) -> pa.Table:
        rows = range(table.num_rows)
        table = table.append_column(
            "digest", pa.array([f"d{row if row < 3 else f'{row}{table.num_rows}'}" for row in rows])
        )
        return table.append_column(
            "phash", pa.array([row * 0x9E3779B97F4A7C15 % 2**64 for row in rows], pa.uint64())
        )

    result = audit(sides(train), sides(test))
    return {"against": f"the training part {EVIL}", "lines": result.lines(), **result.to_dict()}


def contents(table: pa.Table, shards: str | None = None, **more: Any) -> dict[str, Any]:
    """A report of these predictions."""
    protocol = {
        "name": "subject_exclusive",
        "val": 0.05,
        "test": 0.1,
        "folds": 5,
        "fold": 1,
        "file": None,
        "seed": 3,
    }
    return {
        "model": {"name": f"runs/{EVIL}", "network": "baseline", "identity": "0123456789abcdef"},
        "data": {"name": "drawn", "shards": shards, "landmarks": "auto"},
        "protocol": protocol,
        "notes": [f"a note {EVIL}"],
        "warnings": [f"a warning {EVIL}"],
        "unusable": {},
        "levels": list(LEVELS),
        **full(table),
        "audit": {"against": None, "lines": ["the training faces are not at hand"]},
        "card": CARD,
    } | more


def page_of(folder: Path, result: dict[str, Any], table: pa.Table, embedded: pa.Table | None = None) -> Page:
    folder.mkdir(parents=True, exist_ok=True)
    evaluation_report(str(folder), result, table, embedded)
    return Page((folder / report.PAGE).read_text())


def embeddings(table: pa.Table, size: int = 24) -> pa.Table:
    ages = table.column("age").to_numpy()
    rng = np.random.default_rng(1)
    vectors = np.sin(np.outer(ages, rng.normal(size=size)) / 20) + rng.normal(size=(len(ages), size)) / 10
    return pa.table(
        {
            "key": table.column("key"),
            "age": table.column("age"),
            "embedding": list(vectors.astype(np.float32)),
        }
    )


@pytest.fixture(scope="module")
def tested() -> pa.Table:
    return faces(1200)


@pytest.fixture(scope="module")
def page(tested: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """A page with everything on it."""
    classifiers = [
        {"name": name, "mae": {"value": mae, "low": mae - 0.2, "high": mae + 0.2}}
        for name, mae in (("G-1", 5.5), ("DHAA", 5.0))
    ]
    more = {
        "audit": audited(faces(1000, seed=1), tested),
        "classifiers": classifiers,
        "gallery": {
            "faces": 900,
            "neighbours": 4800.0,
            "same_subject_share": 0.125,
            "same_subject_excluded": 0.0,
            "without_neighbours": 2,
        },
        "gender": {"faces": 1100, "accuracy": 0.875, "by": "vote"},
        "unusable": {f"{EVIL}-{number:02d}": f"cannot decode {EVIL}" for number in range(60)},
    }
    return page_of(
        tmp_path_factory.mktemp("page"), contents(tested, **more), tested, embeddings(tested.slice(0, 90))
    )


# --- the page of an evaluation --------------------------------------------------------------------


def test_the_audit_comes_first_and_every_section_is_there(page: Page) -> None:
    expected = [
        "audit",
        "accuracy",
        "ages",
        "people",
        "intervals",
        "risk_coverage",
        "challenge",
        "classifiers",
        "embedding",
        "gallery",
        "worst",
    ]
    assert page.sections == [*expected, "unusable", "model", "method"]
    links = [str(result["href"]) for result in page.named("a")]
    assert links == [f"#{section}" for section in page.sections]
    assert len(page.named("svg")) == 11


def test_page_loads_nothing_and_runs_nothing(page: Page) -> None:
    assert not {tag for tag, _ in page.elements} & {"script", "link", "iframe", "object", "i"}
    for tag, result in page.elements:
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            assert (result.get(name) or "#").startswith(("#", "data:image/")), (tag, name)
    assert not re.search(r"url\((?!#)|@import", page.html)
    assert any("default-src 'none'" in (result.get("content") or "") for result in page.named("meta"))


def test_what_comes_from_outside_is_text(page: Page) -> None:
    assert EVIL not in page.html
    for place in (
        "runs/{}",
        "a note {}",
        "a warning {}",
        "the training part {}",
        "{}-00000",
        "{}-00 cannot decode {}",
        "{} 600",
    ):
        assert place.format(EVIL, EVIL) in page.text, place
    for text in ("tiny <b>", "<i>anything</i>"):
        assert text in page.text


def test_page_tells_the_figures_of_the_report(page: Page, tested: pa.Table) -> None:
    result = full(tested)
    overall = result["estimates"]["overall"]
    mae = overall["mae"]
    assert f"MAE (years) {mae['value']:.2f} 95% interval {mae['low']:.2f}–{mae['high']:.2f}" in page.text
    subjects = overall["mae_over_subjects"]
    assert (
        f"mean over subjects {subjects['value']:.2f} {subjects['low']:.2f}–{subjects['high']:.2f}"
        in page.text
    )
    assert f"Error of at most 5 years {result['cs5']:.1%}" in page.text
    assert (
        f"{result['interval']['coverage']:.1%} {result['interval']['mean_width']:.1f} years wide on average"
        in page.text
    )
    assert "Faces 1,200 300 subjects" in page.text
    assert "subject_exclusive, fold 1 of 5, counted from 0, seed 3" in page.text
    rule = result["estimates"]["challenge"][6]
    assert f"from 18, threshold 25 {rule['under_age']} {rule['false_accept']['value']:.1%}" in page.text
    assert "40 resamples of 300 subjects (seed 0)" in page.text
    assert "12.5%" in page.text
    assert "Gender right by the nearest faces (vote), of 1,100 faces 87.5%" in page.text


def test_findings_of_the_audit_stand_out_beside_its_floors(page: Page, tested: pa.Table) -> None:
    result = audited(faces(1000, seed=1), tested)
    warned = unescape(page.html.split('class="panel warn"')[2].split("</div>")[0])  # after the warnings
    lines = [line for line in result["lines"] if line.startswith(("leak:", "labels:"))]
    assert len(lines) >= 4
    assert all(line in warned for line in lines)
    assert "1,000 training and 1,200 test images" not in warned
    assert f"the subject's mean training age {result['oracle']['mae']:.2f}" in page.text
    assert f"Byte-identical to a training image {result['byte_identical']['across']} (" in page.text
    assert "Always the training median, 30 years" in page.text
    assert "One picture, two ages" in page.text


def test_unusable_faces_are_counted_and_the_first_listed(page: Page) -> None:
    assert "60 in all; the first 50." in page.text
    assert (f"{EVIL}-49" in page.text, f"{EVIL}-50" in page.text) == (True, False)


def test_what_is_not_known_is_not_shown(tmp_path: Path) -> None:
    table = faces(120, labels=False)
    rendered = page_of(
        tmp_path,
        contents(table, card=None, estimates=full(table)["estimates"] | {"calibration": None}),
        table,
    )
    assert rendered.sections == [
        "audit",
        "accuracy",
        "ages",
        "intervals",
        "risk_coverage",
        "challenge",
        "worst",
        "unusable",
        "method",
    ]
    assert "the training faces are not at hand" in rendered.text
    assert "subjects not known" in rendered.text
    assert "mean over subjects" not in rendered.text
    assert "epsilon" not in rendered.text.replace("the epsilon-error, which counts", "")
    assert "Knowing only who it is" not in rendered.text
    assert "Quantiles" not in rendered.text


def test_epsilon_error_is_shown_where_deviations_are_known(tmp_path: Path) -> None:
    table = faces(80)
    rendered = page_of(tmp_path, contents(table, **full(table, age_std=np.full(80, 3.0))), table)
    assert "epsilon-error (0 to 1), mean over images" in rendered.text
    assert "epsilon-error (0 to 1), mean over subjects" in rendered.text


def test_folds_and_shares_are_named(tmp_path: Path) -> None:
    table = faces(40)
    lopo = {
        "name": "lopo",
        "val": 0.05,
        "test": 0.1,
        "folds": 0,
        "fold": 0,
        "file": None,
        "seed": 0,
        "folds_run": 82,
    }
    assert (
        "Protocol: lopo, all of 82 folds, seed 0"
        in page_of(tmp_path, contents(table, protocol=lopo), table).text
    )
    shares = lopo | {"name": "random", "folds_run": None}
    assert (
        "Protocol: random, 10% for the test, seed 0"
        in page_of(tmp_path, contents(table, protocol=shares), table).text
    )
    assert (
        "Protocol: all " in page_of(tmp_path, contents(table, protocol=shares | {"name": "all"}), table).text
    )


@pytest.mark.parametrize(
    "odd", ["three faces", "one age", "equal errors", "one far off", "equal widths of nothing"]
)
def test_degenerate_faces_still_make_a_page(odd: str, tmp_path: Path) -> None:
    table = faces(
        3 if odd == "three faces" else 60, labels=odd == "one far off", age=40.0 if odd == "one age" else None
    )
    ages = table.column("age").to_numpy()
    answers = {
        "equal errors": ages + 2,
        "one far off": np.where(np.arange(len(ages)) == 0, 4000.0, ages),
        "equal widths of nothing": ages,
    }
    if odd in answers:
        for name in ("predicted", "low", "high"):
            place = table.column_names.index(name)
            table = table.set_column(place, name, pa.array(answers[odd], pa.float32()))
    rendered = page_of(
        tmp_path, contents(table, audit=audited(faces(12, labels=False), table)), table, embeddings(table)
    )
    assert f"Faces {table.num_rows}" in rendered.text
    assert "nan" not in re.sub(r"\w*nan\w+|\w+nan\w*", "", rendered.text.lower())
    assert rendered.html.count("<svg") == len(rendered.named("figure")) - min(24, table.num_rows)


def test_faces_without_a_prediction_are_left_out(tmp_path: Path) -> None:
    table = faces(50)
    bad = table.slice(0, 1).to_pylist()[0] | {
        "error": "cannot decode",
        "predicted": None,
        "low": None,
        "high": None,
    }
    whole = pa.concat_tables([table.slice(1), pa.Table.from_pylist([bad], schema=table.schema)])
    rendered = page_of(tmp_path, contents(table.slice(1), unusable={bad["key"]: bad["error"]}), whole)
    assert "Faces 49" in rendered.text
    assert rendered.text.count(bad["key"]) == 1


def test_page_is_the_same_each_time_and_small(tmp_path: Path) -> None:
    table = faces(2000)
    result = contents(table, audit=audited(faces(500, seed=1), table))
    pages = [
        page_of(tmp_path / name, result, table, embeddings(table.slice(0, 60))).html
        for name in ("one", "two")
    ]
    assert pages[0] == pages[1]
    assert len(pages[0]) < 1_500_000


def test_an_answer_far_off_does_not_draw_a_cell_for_each_year_up_to_it(tmp_path: Path) -> None:
    table = faces(1000)
    wild = np.where(np.arange(1000) == 0, 1e5, table.column("predicted").to_numpy())
    table = table.set_column(table.column_names.index("predicted"), "predicted", pa.array(wild, pa.float32()))
    assert len(page_of(tmp_path, contents(table), table).html) < 1_000_000


# --- the worst faces ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 drawn faces in 2 shards with row groups of 4.

    Every third has no points, every sixth no box, one cannot be decoded.
    """
    folder = tmp_path_factory.mktemp("shards") / "drawn"
    for path in synthetic_faces.write_faces_table(folder, 40, size=120, shards=2):
        rows = pq.read_table(path)
        changed = [
            row
            | ({"landmarks": None} if number % 3 == 0 else {})
            | ({"box": None} if number % 6 == 0 else {})
            | ({"image": b"no picture"} if row["key"].endswith("07") else {})
            for number, row in enumerate(rows.to_pylist())
        ]
        pq.write_table(pa.Table.from_pylist(changed, schema=rows.schema), path, row_group_size=4)
    return folder


def of_shards(shards: Path) -> pa.Table:
    keys = (
        pa.concat_tables([pq.read_table(path, columns=["key"]) for path in sorted(shards.glob("*.parquet"))])
        .column("key")
        .to_pylist()
    )
    return faces(len(keys)).set_column(0, "key", pa.array(keys))


def test_worst_faces_come_with_their_pictures(shards: Path, tmp_path: Path) -> None:
    table = of_shards(shards)
    rendered = page_of(tmp_path, contents(table, str(shards)), table)
    errors = np.abs(table.column("predicted").to_numpy() - table.column("age").to_numpy())
    keys = [table.column("key")[int(row)].as_py() for row in np.argsort(-errors)[:24]]
    names = [
        str(result["title"])
        for tag, result in rendered.elements
        if tag == "span" and result.get("class") == "name"
    ]
    assert names == keys
    broken = [key for key in keys if key.endswith("07")]
    images = [str(result["src"]) for result in rendered.named("img")]
    assert len(images) == 24 - len(broken)
    assert all(decode(base64.b64decode(image.partition("base64,")[2])).width <= 240 for image in images)


def test_missing_or_foreign_shards_leave_the_list(shards: Path, tmp_path: Path) -> None:
    table = of_shards(shards)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "a.parquet").write_bytes(b"no parquet")
    pq.write_table(pa.table({"other": [1]}), foreign / "b.parquet")
    for place in (str(tmp_path / "gone"), str(foreign), None):
        rendered = page_of(tmp_path / "page", contents(table, place), table)
        assert not rendered.named("img")
        assert rendered.text.count("not shown") == 24


def test_pictures_are_found_by_key_alone(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    whole = pq.ParquetFile.read_row_group

    def counted(self: Any, group: int, columns: list[str]) -> pa.Table:
        read.extend([group] if "image" in columns else [])
        return whole(self, group, columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    key = of_shards(shards).column("key")[22].as_py()
    assert set(pictures.face_pictures(str(shards), {key, "not there"})) == {key}
    assert read == [0]


def jpeg(pixels: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=92)
    return file.getvalue()


def test_a_face_is_cut_out_around_its_points_else_its_box() -> None:
    photo = np.zeros((300, 400, 3), np.uint8)
    photo[100:200, 200:300] = 255  # the face
    content = jpeg(photo)
    points = [220, 120, 280, 120, 250, 150, 230, 180, 270, 180]

    def rendered(*place: Any) -> tuple[float, tuple[int, ...]]:
        small = decode(base64.b64decode(pictures.face_picture(content, *place).partition("base64,")[2]))
        return float(small.pixels.mean() / 255), small.pixels.shape[:2]

    share, shape = rendered(points, None)
    assert 0.25 < share < 0.45
    assert shape[0] == shape[1]
    share, shape = rendered(None, [200, 100, 299, 199])
    assert 0.45 < share < 0.6
    assert abs(shape[0] - shape[1]) <= 2
    assert rendered(None, None) == rendered([float("nan")] * 10, None)
    assert rendered(None, None)[1] == (180, 240)
    assert rendered(None, [500, 400, 600, 500])[1] == (180, 240)  # outside: the whole photo


# --- the embedding --------------------------------------------------------------------------------


def test_principal_components_are_those_of_scikit_learn() -> None:
    decomposition = pytest.importorskip("sklearn.decomposition")
    vectors = np.random.default_rng(0).normal(size=(70, 12)) * np.arange(1, 13)
    result, shares = embedding.principal_components(vectors, 5)
    fitted = decomposition.PCA(5).fit(vectors)
    np.testing.assert_allclose(np.abs(result), np.abs(fitted.transform(vectors)), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(shares, fitted.explained_variance_ratio_, rtol=1e-9)
    assert (result[np.abs(result).argmax(0), range(5)] > 0).all()


def test_neighbours_stay_neighbours_on_the_map() -> None:
    pytest.importorskip("sklearn")
    side = np.repeat([0.0, 6.0], 40)
    vectors = np.random.default_rng(0).normal(size=(80, 20)) + side[:, None]
    places, how = embedding.in_the_plane(vectors)
    assert how.startswith("t-SNE of the first 20 principal components (100% of the variance), seed 0")
    distance = np.linalg.norm(places[:, None] - places, axis=2) + 1e9 * np.eye(80)
    assert (side[distance.argmin(1)] == side).all()
    np.testing.assert_array_equal(places, embedding.in_the_plane(vectors)[0])


def test_without_scikit_learn_the_map_is_of_two_components(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    vectors = np.random.default_rng(0).normal(size=(80, 20))
    places, how = embedding.in_the_plane(vectors)
    np.testing.assert_array_equal(places, embedding.principal_components(vectors)[0][:, :2])
    assert "install scikit-learn" in how


@pytest.mark.parametrize("vectors", [np.ones((80, 4)), np.outer(np.arange(80.0), np.ones(3)), np.eye(4)[:3]])
def test_flat_or_few_embeddings_have_places(vectors: Any) -> None:
    places, how = embedding.in_the_plane(vectors)
    assert places.shape == (len(vectors), 2)
    assert np.isfinite(places).all()
    assert how.startswith("The first two principal components")


# --- several models -------------------------------------------------------------------------------


def compared(names: list[str]) -> dict[str, Any]:
    """A comparison of models whose errors grow from one to the next; the first two are alike."""
    table = faces(400)
    true, subjects = table.column("age").to_numpy(), table.column("subject").to_pylist()
    answers = {
        name: true + np.random.default_rng(number).normal(0, 4 + 3 * max(number - 1, 0), 400)
        for number, name in enumerate(names)
    }
    models = []
    for number, (name, ages) in enumerate(answers.items()):
        tested = metrics.Tested(true, ages, ages - 9, ages + 9, subject=subjects)
        result = metrics.full_report(tested, resamples=RESAMPLES)["estimates"]
        figures = {
            figure: result["overall"][figure] for figure in ("mae", "cs5", "bias", "coverage", "width", "cs")
        }
        models.append(
            {
                "name": name,
                "identity": "00",
                **figures,
                "by_age": result["by_age"],
                "report": f"{number}-m/report.html",
            }
        )
    pairs = []
    for first, second in combinations(names, 2):
        result = metrics.compare(
            true, answers[first], answers[second], subjects, resamples=RESAMPLES, flips=499
        )
        real = result["permutation_p"] < 0.01
        tests = {name: result[name] for name in ("permutation_p", "wilcoxon_p")}
        pairs.append(
            {
                "first": first,
                "second": second,
                "difference": result["mae"]["difference"],
                **tests,
                "real": real,
            }
        )
    data, protocol = {"name": "drawn"}, {"name": "random"}
    return {
        "data": data,
        "protocol": protocol,
        "images": 400,
        "models": models,
        "pairs": pairs,
        "warnings": [EVIL],
    }


def test_comparison_tells_who_is_better_and_who_is_not(tmp_path: Path) -> None:
    names = [f"one {EVIL}", "two", "three"]
    comparison_report(str(tmp_path), compared(names))
    rendered = Page((tmp_path / report.PAGE).read_text())
    assert f"one {EVIL} and two: no difference beyond noise; the difference of MAE is" in rendered.text
    assert re.search(
        r"two is better than three by \d\.\d\d years \(95% interval \d\.\d\d–\d\.\d\d; p = 0\.002 by sign",
        rendered.text,
    )
    assert "<script>" not in rendered.html
    assert [result["href"] for result in rendered.named("a")] == [
        f"{number}-m/report.html" for number in range(3)
    ]
    assert len(rendered.named("svg")) == 3
    assert "var(--series-2)" in rendered.html
    assert "3 models on drawn" in rendered.text


def test_one_model_or_many_fit_the_comparison(tmp_path: Path) -> None:
    for count, figures in ((1, 2), (10, 3)):
        comparison_report(str(tmp_path), compared([f"model {number}" for number in range(count)]))
        assert len(Page((tmp_path / report.PAGE).read_text()).named("svg")) == figures


def test_a_verdict_turns_the_difference_round() -> None:
    worse = {"value": 0.5, "low": 0.25, "high": 0.75}
    pair = {
        "first": "a",
        "second": "b",
        "difference": worse,
        "permutation_p": 0.0001,
        "wilcoxon_p": 0.04,
        "real": True,
    }
    answers = verdict(pair)
    assert answers["names"] == ("b", "a")
    assert (
        answers["rest"]
        == "by 0.50 years (95% interval 0.25–0.75; p <\u00a00.001 by sign flips, 0.040 by Wilcoxon's ranks)"
    )
    better = {"value": -0.5, "low": -0.75, "high": -0.25}
    answers = verdict(pair | {"difference": better})
    assert answers["better"] == "a"
    assert "0.50 years (95% interval 0.25–0.75;" in answers["rest"]
    assert verdict(pair | {"difference": {"value": -0.5, "low": None, "high": None}})["rest"].startswith(
        "by 0.50 years (p <\u00a00.001"
    )


def cell(mae: float, own: bool = False, warnings: tuple[str, ...] = ()) -> dict[str, Any]:
    result = {"value": mae, "low": mae - 1, "high": mae + 1}
    return {
        "mae": result,
        "cs5": {"value": 0.5, "low": None, "high": None},
        "images": 1234,
        "warnings": list(warnings),
        "report": "m/report.html",
        "own": own,
    }


def test_matrix_colours_within_a_column_and_marks_its_own(tmp_path: Path) -> None:
    cells = [[cell(4, own=True), cell(9)], [cell(6, warnings=(EVIL,)), None], [cell(5), cell(9)]]
    matrix_report(str(tmp_path), {"models": ["a", EVIL, "c"], "sets": ["x", "<b>y"], "cells": cells})
    rendered = Page((tmp_path / report.PAGE).read_text())
    heat = [str(result["style"]) for result in rendered.named("td") if result.get("class") == "heat"]
    assert heat == ["--strength:45%", "--strength:0%", "--strength:0%", "--strength:22%", "--strength:0%"]
    assert rendered.text.count("own") == 2  # the legend's and the cell's
    assert f"{EVIL} on x {EVIL}" in rendered.text
    assert "4.00 own 3.00–5.00 CS(5) 50.0% 1,234 faces" in rendered.text
    assert "<script>" not in rendered.html
    assert "<b>y" in rendered.text


# --- figures as text ------------------------------------------------------------------------------


def test_figures_have_signs_intervals_and_gaps() -> None:
    result = {"value": 1.234, "low": -0.5, "high": 2.0}
    assert (years(result, signed=True).text, years(result, signed=True).interval) == (
        "+1.23",
        "−0.50 to +2.00",
    )
    assert years(result).interval == "−0.50 to 2.00"
    assert percent({"value": 0.5, "low": 0.25, "high": 0.75}).interval == "25.0–75.0%"
    for missing in (None, float("nan"), {"value": None, "low": None, "high": None}):
        assert (years(missing).text, years(missing).interval) == ("–", "")
    assert (years({"value": 1.0, "low": None, "high": None}).interval, percent(0.125).text) == ("", "12.5%")
    assert (probability(0.0001), probability(0.0456)) == ("<\u00a00.001", "0.046")


def test_letters_go_on_after_z() -> None:
    assert [letter(number) for number in (0, 1, 25, 26, 51, 52)] == ["A", "B", "Z", "AA", "AZ", "BA"]
