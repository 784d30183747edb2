"""Every cell of the pages' tables, each recomputed from the faces by plain Python.

The page of one model is made of a report of 240 faces and a failed one. Its tables are read back
from the HTML and compared, cell by cell, with values from loops over the faces and intervals from
the bootstrap of just these values.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest

from ageray import report
from ageray.audit import audit
from ageray.evaluate import results
from ageray.evaluate.page.comparison import comparison_report
from ageray.evaluate.page.evaluation import evaluation_report
from ageray.experiment import Data
from ageray.metrics.bootstrap import Bootstrap
from ageray.metrics.mean import Mean

FACES, TRAINED, TRAIN_MEDIAN = 240, 300, 31.0
LABELS = ("female", "male", None)
GROUPS = ("a", "b", "c", "d", None)
RULES = ((13, 13), (16, 16), (18, 18), (21, 21), (25, 25), (18, 21), (18, 25), (21, 25))
CHECK_BANDS = ((0, 13), (13, 16), (16, 18), (18, 21), (21, 25), (25, 1000))
GALLERY = {"faces": 901, "gender_by": "vote"}

Text = tuple[str, str]
"""A cell: its text, and the small print below it."""


class Face(NamedTuple):
    key: str
    age: float
    predicted: float
    low: float
    high: float
    subject: str
    gender: str | None
    group: str | None
    deviation: float | None
    neighbours: int = 0
    own: int = 0

    @property
    def error(self) -> float:
        return abs(self.predicted - self.age)


class Tables(HTMLParser):
    """The tables of a page: by section, the rows of each table as cells."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.sections: dict[str, list[list[list[Text]]]] = {}
        self.captions: dict[str, list[str]] = {}
        self.tones: list[str] = []
        self.tiles: list[list[str]] = []
        self._section, self._target = "", ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "section":
            self._section = str(values["id"])
            self.sections[self._section], self.captions[self._section] = [], []
        elif tag == "table":
            self.sections[self._section].append([])
        elif tag == "tr":
            self.sections[self._section][-1].append([])
        elif tag in ("th", "td"):
            self.sections[self._section][-1][-1].append(("", ""))
            self._target = "text"
            if values.get("class") == "under":
                place = len(self.sections[self._section][-1][-1]) - 1
                self.tones.append(f"{len(self.sections[self._section][-1]) - 1},{place}")
        elif tag == "small" and self._target == "text":
            self._target = "small"
        elif tag == "caption":
            self.captions[self._section].append("")
            self._target = "caption"
        elif tag == "dt":
            self.tiles.append(["", "", ""])
            self._target = "tile 0"
        elif tag == "dd":
            self._target = "tile 1"
        elif tag == "small" and self._target == "tile 1":
            self._target = "tile 2"

    def handle_endtag(self, tag: str) -> None:
        if tag in ("th", "td", "caption", "dt", "dd"):
            self._target = ""
        elif tag == "small" and self._target == "small":
            self._target = "text"

    def handle_data(self, data: str) -> None:
        data = " ".join(data.split())
        if self._target in ("text", "small"):
            row = self.sections[self._section][-1][-1]
            text, small = row[-1]
            if self._target == "text":
                row[-1] = (text + data, small)
            else:
                row[-1] = (text, small + data)
        elif self._target == "caption":
            self.captions[self._section][-1] += data
        elif self._target.startswith("tile"):
            self.tiles[-1][int(self._target[-1])] += data


# --- the faces ------------------------------------------------------------------------------------


def made_up(count: int, seed: int, prefix: str) -> list[Face]:
    """Faces of all ages whose errors, intervals and labels differ, to tell all cells apart."""
    rng = random.Random(seed)
    faces = []
    for number in range(count):
        age = float(rng.choice([*range(5, 30), *range(12, 26), *range(30, 70)]))
        gender, group = rng.choice(LABELS), rng.choice(GROUPS)
        spread = 2 + age / 12 + 3 * (gender == "male") + 2 * (group == "b")
        predicted = age + rng.gauss(0.7 + 2 * (group == "a"), spread)
        half = spread * rng.uniform(0.6, 2.2)
        deviation = None if number % 3 == 0 else rng.uniform(2, 6)
        subject = f"p{number // 3}"
        ends = predicted - half, predicted + 0.8 * half
        gallery = rng.randint(3, 9), rng.randint(0, 3)
        faces.append(
            Face(f"{prefix}-{number:04}", age, predicted, *ends, subject, gender, group, deviation, *gallery)
        )
    return faces


TESTED = [
    face._replace(**{name: float(np.float32(getattr(face, name))) for name in ("predicted", "low", "high")})
    for face in made_up(FACES, 1, "test")
]
FAILED = Face("test-9999", 44.0, float("nan"), float("nan"), float("nan"), "p9999", "male", "a", 4.0)
TRAIN = [
    face._replace(subject=f"p{number // 2 + 60}") for number, face in enumerate(made_up(TRAINED, 2, "train"))
]
SUBJECTS = [face.subject for face in TESTED]


def predictions() -> pa.Table:
    """The rows that an evaluation stores, with their labels."""
    faces = [*TESTED, FAILED]
    count = len(TESTED)
    quantiles = [[face.low, face.predicted, face.high] * 6 + [face.high] for face in TESTED]
    numbers = pa.list_(pa.float32())
    return pa.table(
        {
            "key": [face.key for face in faces],
            "age": pa.array([face.age for face in faces], pa.float32()),
            "error": [""] * count + ["cannot decode"],
            "predicted": pa.array([face.predicted for face in faces], pa.float32()),
            "low": pa.array([face.low for face in faces], pa.float32()),
            "high": pa.array([face.high for face in faces], pa.float32()),
            "quantiles": pa.array([*quantiles, None], numbers),
            "gender_number": pa.array([gender_number(face) for face in faces], pa.int8()),
            "female": pa.array([female_share(face) for face in faces], pa.float32()),
            "neighbours": pa.array([float(face.neighbours) for face in faces], pa.float32()),
            "own": pa.array([float(face.own) for face in faces], pa.float32()),
            "subject": [face.subject for face in faces],
            "gender": [face.gender for face in faces],
            "group": [face.group for face in faces],
            "age_std": pa.array([face.deviation for face in faces], pa.float32()),
        }
    )


def gender_number(face: Face) -> int:
    return {"female": 1, "male": 0, None: -1}[face.gender]


def female_share(face: Face) -> float:
    """A vote that is right for most faces and undecided for some."""
    return (face.neighbours % 5) / 4


def fingerprints(faces: Sequence[Face], side: str) -> pa.Table:
    """The faces with digests and hashes.

    The first 3 faces of both sides are copies of each other, the next 4 near copies. Test faces 20
    and 21 are copies of each other.
    """
    rng = random.Random(side)
    digests, hashes = [], []
    shared = random.Random(9)
    for number in range(len(faces)):
        planted, own = shared.getrandbits(64), rng.getrandbits(64)
        digests.append(f"shared {number}" if number < 3 else f"{side} {number}")
        hashes.append(planted ^ (number - 2) * (side == "test") * (number >= 3) if number < 7 else own)
    if side == "test":
        digests[21], hashes[21] = digests[20], hashes[20]
    return pa.table(
        {
            "key": [face.key for face in faces],
            "age": [face.age for face in faces],
            "subject": [face.subject for face in faces],
            "gender": pa.array([face.gender for face in faces], pa.string()),
            "group": pa.array([face.group for face in faces], pa.string()),
            "digest": digests,
            "phash": pa.array(hashes, pa.uint64()),
        }
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    """The tables of a page with every table on it."""
    folder = tmp_path_factory.mktemp("page")
    findings = audit(fingerprints(TRAIN, "train"), fingerprints(TESTED, "test"))
    rows = predictions()
    model = results.Model(
        name="zoo:default",
        network="siamese",
        identity="0123456789abcdef",
        training_median=TRAIN_MEDIAN,
        classifiers=[],
        gallery=GALLERY,
        exclude_subject=False,
        card={"name": "tiny"},
    )
    contents = results.build(
        rows,
        model=model,
        data=Data(name="drawn"),
        protocol={"name": "random", "test": 0.1},
        notes=[],
        warnings=[],
        audit={"against": "training", "lines": findings.lines(), **findings.to_dict()},
    )
    evaluation_report(str(folder), contents, rows)
    return Tables((folder / report.PAGE).read_text())


# --- what the cells should be ---------------------------------------------------------------------


def sign(text: str) -> str:
    return text.replace("-", "−")


def figure(
    value: Callable[[Face], float],
    form: str,
    chosen: Callable[[Face], bool] = lambda face: True,
    weight: Callable[[Face], float] | None = None,
    faces: Sequence[Face] = TESTED,
) -> Text:
    """The mean of `value` over the chosen faces, and the interval of just this mean."""
    rows = [row for row, face in enumerate(faces) if chosen(face)]
    if not rows:
        return "–", ""
    values = np.array([value(faces[row]) for row in rows])
    weights = None if weight is None else np.array([weight(faces[row]) for row in rows])
    bootstrap = Bootstrap(len(faces), [face.subject for face in faces])
    (ends,) = bootstrap.intervals([Mean(values, np.array(rows), weights)])
    text = sign(format(float(np.average(values, weights=weights)), form))
    return text, "" if ends is None else interval(*ends, form)


def interval(low: float, high: float, form: str) -> str:
    between = " to " if form.startswith("+") or low < 0 else "–"
    return sign(f"{format(low, form).removesuffix('%')}{between}{format(high, form)}")


def plain(*texts: object) -> list[Text]:
    return [(str(text), "") for text in texts]


def within(years: float) -> Callable[[Face], bool]:
    return lambda face: face.error <= years


def covered(face: Face) -> bool:
    return face.low <= face.age <= face.high


def breakdown(title: str, parts: Sequence[tuple[str, Callable[[Face], bool]]]) -> list[list[Text]]:
    table = [plain(title, "Faces", "MAE", "Bias", "CS(5)", "Coverage", "Width")]
    for name, chosen in parts:
        row = plain(name, sum(map(chosen, TESTED)))
        row += [
            figure(lambda face: face.error, ".2f", chosen),
            figure(lambda face: face.predicted - face.age, "+.2f", chosen),
            figure(within(5), ".1%", chosen),
            figure(covered, ".1%", chosen),
            figure(lambda face: face.high - face.low, ".1f", chosen),
        ]
        table.append(row)
    return table


def by_label(name: str, labels: Sequence[str | None]) -> list[tuple[str, Callable[[Face], bool]]]:
    return [
        (label or "unknown", lambda face, label=label: getattr(face, name) == label)  # type: ignore[misc]
        for label in labels
    ]


def decades() -> list[tuple[str, Callable[[Face], bool]]]:
    return [
        (f"{start}-{start + 9}", lambda face, start=start: start <= face.age < start + 10)  # type: ignore[misc]
        for start in range(0, 70, 10)
    ]


def faces_of(subject: str, faces: Sequence[Face] = TESTED) -> int:
    return sum(face.subject == subject for face in faces)


def epsilon(face: Face) -> float:
    if face.predicted != face.predicted:
        return 1.0
    deviation = float(np.float32(face.deviation))
    return float(1 - np.exp(-((face.predicted - face.age) ** 2) / (2 * deviation**2)))


def annotated(face: Face) -> bool:
    return face.deviation is not None


def test_the_tiles(page: Tables) -> None:
    mae = figure(lambda face: face.error, ".2f")
    share = figure(within(5), ".1%")
    bias = figure(lambda face: face.predicted - face.age, "+.2f")
    width = mean(face.high - face.low for face in TESTED)
    assert page.tiles == [
        ["MAE (years)", mae[0], f"95% interval {mae[1]}"],
        ["Error of at most 5 years", share[0], f"95% interval {share[1]}"],
        ["Bias (years)", bias[0], f"95% interval {bias[1]}"],
        ["90% interval covers", figure(covered, ".1%")[0], f"{width:.1f} years wide on average"],
        ["Faces", "240", "80 subjects"],
    ]


def test_accuracy(page: Tables) -> None:
    everybody = [*TESTED, FAILED]
    annotated_faces = [face for face in everybody if annotated(face)]
    expected = [
        plain("", "240 faces"),
        ["MAE (years), mean over images", figure(lambda face: face.error, ".2f")],
        [
            "MAE (years), mean over subjects",
            figure(lambda face: face.error, ".2f", weight=lambda face: 1 / faces_of(face.subject)),
        ],
        ["CS(3): error of at most 3 years", figure(within(3), ".1%")],
        ["CS(5): error of at most 5 years", figure(within(5), ".1%")],
        ["CS(10): error of at most 10 years", figure(within(10), ".1%")],
        ["Bias (years); positive is too old", figure(lambda face: face.predicted - face.age, "+.2f")],
        ["epsilon-error (0 to 1), mean over images", figure(epsilon, ".3f", annotated, faces=everybody)],
        [
            "epsilon-error (0 to 1), mean over subjects",
            figure(
                epsilon,
                ".3f",
                annotated,
                lambda face: 1 / faces_of(face.subject, annotated_faces),
                faces=everybody,
            ),
        ],
        ["True age within the 90% interval", figure(covered, ".1%")],
        ["Mean width of the 90% interval (years)", figure(lambda face: face.high - face.low, ".2f")],
    ]
    [table] = page.sections["accuracy"]
    assert table == [expected[0], *([(str(name), ""), cell] for name, cell in expected[1:])]


def test_figures_by_age(page: Tables) -> None:
    assert page.sections["ages"] == [breakdown("True age", decades())]


def test_figures_by_gender_and_group(page: Tables) -> None:
    assert page.sections["people"] == [
        breakdown("Gender", by_label("gender", LABELS)),
        breakdown("Group", by_label("group", GROUPS)),
    ]


def test_risk_coverage(page: Tables) -> None:
    """AURC: the mean of the running means of the errors, ordered by width or by error."""
    counts = np.concatenate(list(Bootstrap(FACES, SUBJECTS).face_counts())).astype(int)
    error = np.array([face.error for face in TESTED])
    width = np.array([face.high - face.low for face in TESTED])

    def area(order: Any, times: Any) -> float:
        drawn = np.repeat(error[order], times[order])
        return float((np.cumsum(drawn) / np.arange(1, len(drawn) + 1)).mean())

    table = [plain("Order of the faces", "Area under the curve (years)")]
    for name, certainty in (
        ("By the width of the interval", width),
        ("By the error itself, the best order", error),
    ):
        order = np.argsort(certainty, kind="stable")
        areas = [area(order, times) for times in counts]
        ends = interval(*np.quantile(areas, [0.025, 0.975]), ".2f")
        table.append([(name, ""), (f"{area(order, np.ones(FACES, int)):.2f}", ends)])
    table.append(plain("In no order", f"{error.mean():.2f}"))
    assert page.sections["risk_coverage"] == [table]


# --- age checks -----------------------------------------------------------------------------------


def let_in(threshold: float) -> Callable[[Face], bool]:
    return lambda face: face.predicted >= threshold


def asked(threshold: float) -> Callable[[Face], bool]:
    return lambda face: face.predicted < threshold


def test_age_checks(page: Tables) -> None:
    table = [
        plain("Rule", "Faces under age", "Of these let in", "Faces of age", "Of these asked for a document")
    ]
    for limit, threshold in RULES:
        under = sum(face.age < limit for face in TESTED)
        table.append(
            [
                (f"from {limit}, threshold {threshold}", ""),
                (str(under), ""),
                figure(let_in(threshold), ".1%", lambda face, limit=limit: face.age < limit),  # type: ignore[misc]
                (str(FACES - under), ""),
                figure(asked(threshold), ".1%", lambda face, limit=limit: face.age >= limit),  # type: ignore[misc]
            ]
        )
    assert page.sections["challenge"][0] == table


def test_age_checks_by_age(page: Tables) -> None:
    """Under age the share that is let in, coloured; of age the share that is asked."""
    head = plain("Rule", "0-12", "13-15", "16-17", "18-20", "21-24", "25+")
    table, coloured = [head], []
    for number, (limit, threshold) in enumerate(RULES, 1):
        row = plain(f"from {limit}, threshold {threshold}")
        for place, (start, end) in enumerate(CHECK_BANDS, 1):
            rate = let_in(threshold) if end <= limit else asked(threshold)
            row.append(
                figure(rate, ".1%", lambda face, start=start, end=end: start <= face.age < end)  # type: ignore[misc]
            )
            if end <= limit:
                coloured.append(f"{number},{place}")
        table.append(row)
    assert page.sections["challenge"][1] == table
    assert page.tones == coloured


def test_age_checks_by_gender_and_group(page: Tables) -> None:
    tables, captions = [], []
    for name, labels in (("gender", LABELS), ("group", GROUPS)):
        for under_age, what in ((True, "under age and let in"), (False, "of age and asked for a document")):
            table = [plain("Rule", *(label or "unknown" for label in labels))]
            for limit, threshold in RULES:
                rate = let_in(threshold) if under_age else asked(threshold)
                row = plain(f"from {limit}, threshold {threshold}")
                for label in labels:

                    def chosen(
                        face: Face,
                        name: str = name,
                        label: str | None = label,
                        limit: int = limit,
                        under_age: bool = under_age,
                    ) -> bool:
                        return getattr(face, name) == label and (face.age < limit) == under_age

                    row.append(figure(rate, ".1%", chosen))
                table.append(row)
            tables.append(table)
            captions.append(f"By {name}: {what}")
    assert page.sections["challenge"][2:] == tables
    assert page.captions["challenge"] == captions


# --- audit, gallery, the rest ---------------------------------------------------------------------


def test_the_floors(page: Tables) -> None:
    """The oracle answers the mean training age of the face's subject, else the training median."""
    ages: dict[str, list[float]] = {}
    for face in TRAIN:
        ages.setdefault(face.subject, []).append(face.age)
    middle = median(face.age for face in TRAIN)
    answers = [mean(ages[face.subject]) if face.subject in ages else middle for face in TESTED]
    oracle = mean(abs(answer - face.age) for answer, face in zip(answers, TESTED, strict=True))
    own = median(face.age for face in TESTED)
    assert page.sections["audit"][0] == [
        plain("", "MAE (years)"),
        [("The model", ""), figure(lambda face: face.error, ".2f")],
        plain("Knowing only who it is: the subject's mean training age", f"{oracle:.2f}"),
        [
            ("Always the training median, 31 years", ""),
            figure(lambda face: abs(face.age - TRAIN_MEDIAN), ".2f"),
        ],
        [
            (f"Always this set's own median, {round(own, 1):g} years", ""),
            figure(lambda face: abs(face.age - own), ".2f"),
        ],
    ]


def test_the_leaks(page: Tables) -> None:
    trained, tested = {face.subject for face in TRAIN}, {face.subject for face in TESTED}
    shared = [number for number, face in enumerate(TESTED) if face.subject in trained]
    leaked = len({*shared, *range(7)})
    gaps = [abs(TRAIN[number].age - TESTED[number].age) for number in range(7)]
    gaps.append(abs(TESTED[20].age - TESTED[21].age))
    conflicts = sum(gap > 0 for gap in gaps[:3]) * 2 + (gaps[7] > 0) * 2
    differ = [gap for gap in gaps if gap > 0]
    assert page.sections["audit"][1] == [
        plain("Images", "300 in training, 240 in the test"),
        plain("Subjects", f"{len(trained)} in training, {len(tested)} in the test"),
        plain("Test images whose subject is in training", f"{len(shared)} ({len(shared) / FACES:.1%})"),
        plain("Byte-identical to a training image", f"3 ({3 / FACES:.1%})"),
        plain("Byte-identical copies within one part", "0 in training, 2 in the test"),
        plain("Near-identical to a training image", f"7 ({7 / FACES:.1%})"),
        plain("Near-identical copies within one part", "0 in training, 2 in the test"),
        plain("Any of these: leaked test images", f"{leaked} ({leaked / FACES:.1%})"),
        plain("Byte-identical images with different ages", conflicts),
        plain(
            "Near-identical pairs with different ages",
            f"{len(differ)} of 8, by {mean(differ):.1f} years on average",
        ),
    ]


def test_the_make_up_of_both_parts(page: Tables) -> None:
    tables = []
    for name, labels in (("gender", LABELS), ("group", GROUPS)):
        table = [plain(name.capitalize(), "Training", "Test")]
        for label in labels:
            row = plain(label or "unknown")
            for faces in (TRAIN, TESTED):
                count = sum(getattr(face, name) == label for face in faces)
                row += plain(f"{count} ({count / len(faces):.1%})")
            table.append(row)
        tables.append(table)
    assert page.sections["audit"][2:4] == tables


def test_the_examples_of_copies(page: Tables) -> None:
    near, conflicts = page.sections["audit"][4:]
    assert near[1:] == [plain(f"test-{number:04}", f"train-{number:04}") for number in range(7)]
    rows = []
    for row in conflicts[1:]:
        rows.append([text for text, _ in row])
    for first, first_age, second, second_age, kind in rows:
        ages = {face.key: face.age for face in (*TRAIN, *TESTED)}
        assert (f"{ages[first]:g}", f"{ages[second]:g}") == (first_age, second_age)
        assert first_age != second_age
        assert kind in ("byte-identical", "near-identical")


def test_the_gallery(page: Tables) -> None:
    neighbours, own = sum(face.neighbours for face in TESTED), sum(face.own for face in TESTED)
    annotated_faces = [face for face in TESTED if face.gender is not None]
    points = 0.0
    for face in annotated_faces:
        share = female_share(face)
        points += 0.5 if share == 0.5 else (share > 0.5) == (face.gender == "female")
    right = points / len(annotated_faces)
    assert page.sections["gallery"] == [
        [
            plain("Faces in the gallery", "901"),
            plain("Neighbours that ages come from", f"{neighbours:,}"),
            plain("Of these of the face's own subject", f"{own / neighbours:.1%}"),
            plain("Neighbours of the own subject left out", "0"),
            plain("Faces without a neighbour: their age is a guess", "0"),
            plain(
                f"Gender right by the nearest faces (vote), of {len(annotated_faces)} faces", f"{right:.1%}"
            ),
        ]
    ]


def test_what_is_listed(page: Tables) -> None:
    assert page.sections["unusable"] == [[plain("Face", "Why"), plain("test-9999", "cannot decode")]]
    assert page.sections["model"] == [[plain("name", "tiny")]]
    method = {row[0][0]: row[1][0] for row in page.sections["method"][0]}
    assert method["Interval of a face"].startswith("90%: ")
    assert "95%, 1,000 resamples of 80 subjects (seed 0)" in method["Intervals of figures"]
    assert method["Faces without a prediction"].startswith("1, left out")


# --- a comparison ---------------------------------------------------------------------------------


def estimate(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high}


def test_the_cells_of_a_comparison(tmp_path: Path) -> None:
    """Every number of the two models and their difference is another one."""
    models = []
    for number, name in enumerate(("first", "second")):
        shift = number / 100
        models.append(
            {
                "name": name,
                "identity": f"identity {number}",
                "report": f"{number}-m/report.html",
                "mae": estimate(4.11 + shift, 3.91, 4.32),
                "cs5": estimate(0.611 + shift, 0.581, 0.642),
                "bias": estimate(-0.21 + shift, -0.53, 0.14),
                "coverage": estimate(0.871 + shift, 0.851, 0.892),
                "width": estimate(17.1 + number, 16.2, 18.3),
                "cs": [{"years": years, "share": estimate(0.5, 0.4, 0.6)} for years in (0, 5)],
                "by_age": [{"ages": "20-29", "mae": estimate(4.0, 3.0, 5.0)}],
            }
        )
    pair = {
        "first": "first",
        "second": "second",
        "difference": estimate(-0.314, -0.528, -0.107),
        "permutation_p": 0.012,
        "wilcoxon_p": 0.034,
        "real": True,
    }
    comparison = {
        "data": {"name": "drawn"},
        "protocol": {"name": "random"},
        "images": 1234,
        "models": models,
        "pairs": [pair],
        "warnings": [],
    }
    comparison_report(str(tmp_path), comparison)
    tables = Tables((tmp_path / report.PAGE).read_text()).sections
    assert tables["models"] == [
        [
            plain("", "Model", "MAE", "CS(5)", "Bias", "Coverage", "Width"),
            [
                ("A", ""),
                ("first", "identity 0"),
                ("4.11", "3.91–4.32"),
                ("61.1%", "58.1–64.2%"),
                ("−0.21", "−0.53 to +0.14"),
                ("87.1%", "85.1–89.2%"),
                ("17.1", "16.2–18.3"),
            ],
            [
                ("B", ""),
                ("second", "identity 1"),
                ("4.12", "3.91–4.32"),
                ("62.1%", "58.1–64.2%"),
                ("−0.20", "−0.53 to +0.14"),
                ("88.1%", "85.1–89.2%"),
                ("18.1", "16.2–18.3"),
            ],
        ]
    ]
    assert tables["differences"] == [
        [
            plain("Pair", "Difference", "Sign-flip p", "Wilcoxon p", "More than chance"),
            [("A − B", ""), ("−0.31", "−0.53 to −0.11"), ("0.012", ""), ("0.034", ""), ("yes", "")],
        ]
    ]
