"""Cards: figures from predictions, sentences on errors, and the commands that make cards from face
shards."""

from __future__ import annotations

import json
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from ageray import bundle
from ageray.card import Predicted, build_card, mae_at_same_ages
from ageray.errors import UserError
from ageray.experiment import Align, Experiment
from ageray.models.build import build
from ageray.synthetic import faces as synthetic_faces

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
FACTS: dict[str, Any] = {
    "name": "zoo:test",
    "what": "A model for tests.",
    "terms": "None.",
    "networks": [{"name": "noise", "terms": "none"}],
    "sets": [{"name": "drawn", "terms": "none"}],
    "protocol": "None.",
    "not_good_for": ["Anything."],
}


def predicted(name: str = "drawn", count: int = 900, seed: int = 0) -> Predicted:
    """Ages 0 to 89. Those from 60 on are estimated 6 years too young; errors of group B are twice
    as large."""
    rng = np.random.default_rng(seed)
    true = np.arange(count) % 90.0
    group = ["A" if number % 2 else "B" for number in range(count)]
    error = rng.normal(0, 2, count) * np.where(np.array(group) == "B", 2, 1) - 6 * (true >= 60)
    age = np.maximum(true + error, 0)
    over = np.stack([1 / (1 + np.exp(-(age - limit) / 2)) for limit in (17.5, 24.5)], -1)
    gender = ["male" if number % 3 else "female" for number in range(count)]
    subject = [f"person {number // 4}" for number in range(count)]
    return Predicted(name, true, age, age - 6, age + 6, over, gender, group, subject, np.zeros(count, bool))


def test_figures_of_a_set() -> None:
    predictions = predicted()
    card = build_card({"sha256": "abc", "training": {}}, FACTS, [predictions], resamples=100)
    figures = card["figures"]["drawn"]
    error = np.asarray(predictions.age) - np.asarray(predictions.true)
    assert figures["mae"] == pytest.approx(np.abs(error).mean(), abs=1e-3)
    assert figures["mae_95"][0] < figures["mae"] < figures["mae_95"][1]
    assert figures["bias"] == pytest.approx(error.mean(), abs=1e-3)
    assert figures["interval_coverage"] == pytest.approx((np.abs(error) <= 6).mean(), abs=1e-3)
    assert [row["ages"] for row in figures["by_decade"]][:2] == ["0-9", "10-19"]
    assert {row["group"] for row in figures["by_group"]} == {"A", "B"}
    assert figures["worst_group_over_best"] > 1.25
    assert figures["worst_gender_over_best"] < 1.25
    assert figures["people"]["people"] == 225
    assert figures["refused"] == 0
    assert card["sha256"] == "abc"
    assert card["licences"] == ["noise: none", "drawn: none"]
    json.dumps(card)


def test_age_checks_of_a_set() -> None:
    predictions = predicted()
    rows = build_card({}, FACTS, [predictions], resamples=50)["figures"]["drawn"]["age_checks"]
    by_rule = {(row["over"], row["passes"]): row for row in rows}
    true, age, over = (np.asarray(column) for column in (predictions.true, predictions.age, predictions.over))
    minor = true < 18
    challenge = by_rule[18, "challenge 25"]
    assert challenge["false_adult"] == pytest.approx((age[minor] >= 25).mean(), abs=1e-3)
    assert challenge["false_minor"] == pytest.approx((age[~minor] < 25).mean(), abs=1e-3)
    sure = by_rule[18, "probability of 0.9 or more"]
    assert sure["false_adult"] == pytest.approx((over[minor, 0] >= 0.9).mean(), abs=1e-3)
    assert set(sure["false_adult_by_group"]) == {"A", "B"}
    assert (25, "estimate of 25 or more") in by_rule


def test_groups_are_compared_at_the_same_ages() -> None:
    """Errors of a tenth of the age in both groups, of which one is young: a ratio of 1 at the same
    ages."""
    true = np.array([*np.repeat(np.arange(5.0, 65, 10), 30), *np.repeat(np.arange(5.0, 65, 10), 10)])
    young = (np.arange(240) < 180) == (true < 30)
    label = ["young" if each else "old" for each in young]
    figures = build_card(
        {},
        FACTS,
        [
            replace(
                predicted(),
                name="drawn",
                true=true,
                age=true * 1.1,
                low=true - 9,
                high=true + 9,
                over=np.zeros((240, 2)),
                gender=None,
                group=label,
                subject=None,
                refused=None,
            )
        ],
        resamples=50,
    )["figures"]["drawn"]
    assert figures["worst_group_over_best"] > 1.5
    assert figures["worst_group_over_best_same_ages"] == pytest.approx(1, abs=1e-3)
    assert [row["mae_same_ages"] for row in figures["by_group"]] == pytest.approx(
        [np.mean(true) / 10] * 2, abs=1e-3
    )
    assert mae_at_same_ages(true, true, ["one"] * 240) == {}
    assert mae_at_same_ages(true, true, ["young" if each < 30 else "old" for each in true]) == {}


def test_the_card_says_where_it_is_wrong() -> None:
    sentences = build_card({}, FACTS, [predicted()], resamples=50)["not_good_for"]
    assert sentences[0] == "Anything."
    assert [sentence for sentence in sentences if sentence.startswith("drawn, ages 60-69: ")]
    assert not [sentence for sentence in sentences if "ages 20-29" in sentence]
    assert [sentence for sentence in sentences if "B faces have" in sentence]
    assert [sentence for sentence in sentences if "the 90 % interval covers" in sentence]


@pytest.mark.parametrize(
    ("change", "words"),
    [({"terms": ""}, "terms missing"), ({"sets": [{"name": "drawn"}]}, "needs name and terms")],
)
def test_facts_that_a_card_must_say(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        build_card({}, FACTS | change, [predicted()])


# --- the commands


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 drawn faces, their split, and an untrained model."""
    folder = tmp_path_factory.mktemp("card")
    synthetic_faces.write_faces_table(folder / "shards", 48, subjects=16, size=120)
    keys = [row["key"] for row in pq.read_table(folder / "shards").to_pylist()]
    parts = [("train", "val", "test")[number % 3] for number in range(len(keys))]
    pq.write_table(pa.table({"key": keys, "part": parts}), folder / "split.parquet")
    settings = {"model": {"name": "baseline", "ages": [-15, 120]}, "align": Align(size=48)}
    experiment = Experiment.model_validate({**settings, "train": {"precision": "float32"}})
    bundle.save(str(folder / "model"), build(experiment.model, seed=0), experiment, {"training": {}})
    (folder / "facts.yaml").write_text(yaml.safe_dump(FACTS))
    return folder


def run(name: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", [name, *words])
    module = __import__(name)
    module.main()


def test_hard_faces_of_a_model(shards: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = f"drawn={shards / 'shards'}@{shards / 'split.parquet'}#val"
    words = [str(shards / "model"), source, "--kinds", "none,gray,small_20", "--out", str(tmp_path)]
    run("hard_faces", [*words, "--threads", "1"], monkeypatch)
    rows = json.loads((tmp_path / "hard_faces.json").read_text())
    assert [(row["kind"], row["set"], row["photos"]) for row in rows] == [
        ("none", "drawn", 16),
        ("gray", "drawn", 16),
        ("small_20", "drawn", 16),
    ]
    assert rows[0]["found"] == 1
    assert all(0 <= row["coverage"] <= 1 and row["refused"] == 0 for row in rows[:2])


def test_a_card_from_shards(shards: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = f"drawn={shards / 'shards'}@{shards / 'split.parquet'}"
    words = [str(shards / "model"), "--facts", str(shards / "facts.yaml"), "--out", str(tmp_path / "out")]
    words += ["--training", f"{source}#train", "--calibrate", f"{source}#val", "--test", f"{source}#test"]
    words += ["--unseen", f"everything={shards / 'shards'}", "--hard", "3", "--threads", "1"]
    run("card", words, monkeypatch)
    loaded = bundle.load(str(tmp_path / "out"))
    card = loaded.card
    assert card["name"] == "zoo:test"
    assert card["figures"]["drawn"]["faces"] == 16
    assert card["figures"]["drawn"]["seen_in_training"] is True
    assert card["figures"]["everything"]["seen_in_training"] is False
    assert {row["kind"] for row in card["hard_faces"]} >= {"none", "masked", "jpeg_20"}
    assert loaded.calibration.difficulty is not None
    assert loaded.calibration.faces == 16
    assert loaded.distance() is not None
    before = bundle.load(str(shards / "model"))
    assert before.weights == loaded.weights
    assert before.identity != loaded.identity


@pytest.mark.parametrize(("bias", "young"), [(0.0, 0.0), (2.4, 0.05)])
def test_levels_are_the_least_change_that_keeps_biases_within_the_limits(
    bias: float,
    young: float,
    shards: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Posteriors of 4 years deviation, those of children `bias` years too high: their quantile of
    0.45 is half a year lower than the median."""
    model = str(shards / "model")
    loaded = bundle.load(model)
    first, last = loaded.experiment.model.ages
    true = np.repeat(np.arange(60.0), 5)
    centre = true + bias * (true < 10)
    posterior = np.exp(-((np.arange(first, last + 1) - centre[:, None]) ** 2) / 32)
    posterior /= posterior.sum(1, keepdims=True)
    folder = tmp_path / loaded.identity
    folder.mkdir()
    others = ("key", "subject", "gender", "group", "decoded", "measures", "distance", "shown")
    file = f"drawn-{zlib.crc32(b'unread@#'):08x}.npz"
    np.savez(folder / file, true=true, posterior=posterior, **dict.fromkeys(others, np.zeros(1)))
    words = [model, "drawn=unread", "--cache", str(tmp_path), "--threads", "1"]
    run("levels", words, monkeypatch)
    *_, chosen = capsys.readouterr().out.splitlines()
    assert chosen == (
        f"model.decode.levels=[{{age: 15, share: {0.5 - young}}}, {{age: 25, share: 0.5}}, "
        "{age: 45, share: 0.5}, {age: 60, share: 0.5}]"
    )


@pytest.mark.parametrize("line", ["fit", "none"])
def test_a_card_with_and_without_a_line(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoded ages that are 0.9 of the true ones, and 3 years too high."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import card as command  # type: ignore[import-not-found]
    from hard_faces import Raw, Source

    experiment = Experiment.model_validate({"model": {"name": "baseline", "ages": [0, 100]}})
    rng, raws = np.random.default_rng(0), {}
    for kind in ("calibrate", *command._TAUGHT):
        true = rng.uniform(5, 80, 300)
        decoded = 0.9 * true + 3 + rng.normal(0, 2, 300)
        posterior = np.exp(-((np.arange(101.0) - decoded[:, None]) ** 2) / 32)
        posterior /= posterior.sum(1, keepdims=True)
        ages = np.stack([decoded, decoded - 6, decoded + 6], -1)
        label = np.full(300, "")
        measures = rng.normal(size=(300, len(command.MEASURES)))
        raws[kind, "drawn"] = Raw(
            label, true, label, label, label, ages, posterior, measures, rng.random(300), np.array(300)
        )
    words = ["model", "--facts", "facts.yaml", "--out", "out", "--line", line]
    for role in ("training", "calibrate", "test"):
        words += [f"--{role}", "drawn=shards"]
    given = command._parser().parse_args(words)
    assert given.calibrate == [Source.parse("drawn=shards")]
    predictor = SimpleNamespace(bundle=SimpleNamespace(experiment=experiment))
    calibration = command._fit(raws, given, predictor)
    if line == "none":
        assert (calibration.scale, calibration.shift) == (1, 0)
    else:
        assert calibration.scale == pytest.approx(1 / 0.9, abs=0.03)
        assert calibration.shift == pytest.approx(-3 / 0.9, abs=1)
    assert calibration.intervals is not None


@pytest.mark.parametrize("word", ["shards", "=shards", "a=b@c", "a=b@c#", "a="])
def test_a_set_that_is_none(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from hard_faces import Source  # type: ignore[import-not-found]

    with pytest.raises(UserError, match="not a set"):
        Source.parse(word)
