"""The evaluation of one model: figures, warnings about leaks, mistakes, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ageray import bundle, config, metrics
from ageray.calibration import Calibration
from ageray.commands import evaluate as job
from ageray.commands.terminal import tables
from ageray.data import protocols, splits
from ageray.data.labelled_faces import labelled_faces
from ageray.data.splits import train_digest
from ageray.errors import UserError
from ageray.evaluate import one_model
from ageray.experiment import Align, Experiment, Protocol
from ageray.faces.canvases import face_canvases
from ageray.models.build import build
from ageray.predictor import Predictor
from ageray.synthetic import faces

ALIGN = Align(size=48)
PROTOCOL = Protocol(val=0.1, test=0.4)
SCALE = [
    "scale.threads=1",
    "scale.progress=false",
    "scale.decode_batch=16",
    "scale.gpu=false",
    "scale.score_batch=16",
]


def rewrite(file: str, change: Any) -> None:
    """Puts each row of a shard through `change`."""
    table = pq.read_table(file)
    pq.write_table(
        pa.Table.from_pylist([change(row) for row in table.to_pylist()], schema=table.schema), file
    )


def parts_of(shards: Path, protocol: Protocol = PROTOCOL) -> dict[str, list[str]]:
    return protocols.split(labelled_faces(str(shards)), protocol).parts


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """90 drawn faces of 30 people in two shards; ages are whole years.

    Three have no age, two test faces cannot be decoded.
    """
    folder = tmp_path_factory.mktemp("shards") / "drawn"
    files = faces.write_faces_table(folder, 90, subjects=30, size=80, shards=2)

    def label(row: dict[str, Any]) -> dict[str, Any]:
        return row | {"age": None if row["key"].endswith(("07", "33", "61")) else round(row["age"])}

    for file in files:
        rewrite(file, label)
    spoilt = parts_of(folder)["test"][:2]
    for file in files:
        rewrite(file, lambda row: row | {"image": b"no picture"} if row["key"] in spoilt else row)
    return folder


@pytest.fixture(scope="module")
def model(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose card says that the training part of `shards` trained it."""
    settings = Experiment.model_validate(
        {
            "model": {"name": "residual_cnn", "width": 0.25, "ages": [-15, 120]},
            "align": ALIGN,
            "train": {"precision": "float32"},
            "data": {"name": "drawn"},
            "protocol": PROTOCOL,
        }
    )
    network = build(settings.model, seed=0)
    with torch.no_grad():
        network.head.weight.mul_(8)
        network.head.bias.copy_(-((torch.arange(-15.0, 121) - 40) / 20).square())
    facts = {
        "data": "drawn",
        "train_digest": train_digest(parts_of(shards)["train"]),
        "train_ages": {"median": 41.0},
    }
    card = {"training": facts, "calibration": Calibration(1.2, -5, 2, 100).to_card()}
    folder = tmp_path_factory.mktemp("model") / "tiny"
    bundle.save(str(folder), network, settings, card)
    return folder


class Evaluated:
    """The files of an evaluation, and what was printed."""

    def __init__(self, folder: Path, printed: list[dict[str, Any]]) -> None:
        self.report = json.loads((folder / "report.json").read_text())
        self.rows = pq.read_table(folder / "predictions.parquet").to_pylist()
        self.split, self.printed = splits.load(str(folder / "split.parquet")), printed


def evaluate(out: Path, *words: str) -> Evaluated:
    """Runs the command."""
    with pytest.MonkeyPatch.context() as patch:
        printed: list[dict[str, Any]] = []
        patch.setattr(tables, "show", printed.append)
        job.main([*words, "--out", str(out), *SCALE])
    return Evaluated(out, printed)


@pytest.fixture(scope="module")
def evaluated(
    model: Path, shards: Path, ray_local: None, tmp_path_factory: pytest.TempPathFactory
) -> Evaluated:
    return evaluate(tmp_path_factory.mktemp("out") / "results", str(model), f"data.shards={shards}")


@pytest.fixture(scope="module")
def anew(model: Path, shards: Path, ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    """All faces, decoded in another way and without the model's calibration."""
    words = ["protocol.name=all", "train.calibrate=false", "model.decode.flip=false"]
    return evaluate(tmp_path_factory.mktemp("anew"), str(model), *words, f"data.shards={shards}")


# --- figures --------------------------------------------------------------------------------------


def test_every_test_face_is_predicted_and_no_other(evaluated: Evaluated, shards: Path) -> None:
    parts = parts_of(shards)
    assert evaluated.split == parts
    assert [row["key"] for row in evaluated.rows] == parts["test"]
    failed = {row["key"]: row["error"] for row in evaluated.rows if row["error"]}
    assert evaluated.report["unusable"] == failed
    assert failed.keys() == set(parts["test"][:2])
    assert all("image" in error for error in failed.values())
    assert all(np.isnan(row["predicted"]) for row in evaluated.rows if row["error"])
    assert evaluated.report["images"] == len(parts["test"]) - 2


def test_ages_before_calibration_are_reported_too(evaluated: Evaluated) -> None:
    """The model's calibration is the line 1.2 x - 5."""
    rows, plain = [row for row in evaluated.rows if not row["error"]], evaluated.report["plain"]
    for row in rows:
        assert row["predicted"] == pytest.approx(np.clip(1.2 * row["plain"] - 5, 2, 100), abs=1e-3)
    errors = [row["plain"] - row["age"] for row in rows]
    assert plain["mae"]["value"] == pytest.approx(np.mean(np.abs(errors)))
    assert plain["bias"]["value"] == pytest.approx(np.mean(errors))
    assert plain["mae"]["value"] != pytest.approx(evaluated.report["mae"])


def test_a_model_is_decoded_anew_and_without_calibration(evaluated: Evaluated, anew: Evaluated) -> None:
    before = {row["key"]: row["plain"] for row in evaluated.rows if not row["error"]}
    for row in anew.rows:
        assert row["error"] or row["predicted"] == row["plain"]
    tested_twice = [row for row in anew.rows if row["key"] in before]
    assert len(tested_twice) == len(before)
    assert any(row["plain"] != before[row["key"]] for row in tested_twice)
    first, second, *_ = anew.report["warnings"]
    assert first == "decoded with flip: true, now false; ages are not calibrated"
    assert second.startswith("train.calibrate=false: ages are those of the decoding")


def test_figures_are_those_of_the_predictions(evaluated: Evaluated) -> None:
    rows, report = [row for row in evaluated.rows if not row["error"]], evaluated.report
    errors = [row["predicted"] - row["age"] for row in rows]
    assert report["mae"] == pytest.approx(np.mean(np.abs(errors)))
    assert report["bias"] == pytest.approx(np.mean(errors))
    assert report["cs3"] == pytest.approx(np.mean([abs(error) <= 3 for error in errors]))
    assert report["cs5"] == pytest.approx(np.mean([abs(error) <= 5 for error in errors]))
    inside = [row["low"] <= row["age"] <= row["high"] for row in rows]
    assert report["interval"]["coverage"] == pytest.approx(np.mean(inside))
    assert report["interval"]["mean_width"] == pytest.approx(
        np.mean([row["high"] - row["low"] for row in rows]), rel=1e-5
    )
    ages = [row["age"] for row in rows]
    assert report["constant"]["training_median"] == {
        "age": 41.0,
        "mae": pytest.approx(np.mean([abs(age - 41) for age in ages])),
    }
    assert report["constant"]["own_median"]["age"] == np.median(ages)
    assert report["by_decade"] == metrics.by_decade(ages, [row["predicted"] for row in rows])


def test_predictions_are_the_predictors(evaluated: Evaluated, model: Path, shards: Path) -> None:
    """Predictions on Ray in batches of 16 equal those of one face at a time."""
    predictor = Predictor(bundle.load(str(model)), "cpu", threads=1)
    rows_by_key = {row["key"]: row for row in evaluated.rows if not row["error"]}
    ages = []
    for file in sorted(shards.glob("*.parquet")):
        for row in pq.read_table(file).to_pylist():
            if row["key"] not in rows_by_key:
                continue
            points, box = (
                np.array(row["landmarks"], np.float32).reshape(1, 5, 2),
                np.array([row["box"]], np.float32),
            )
            face = face_canvases(row["image"], points, box, ALIGN)
            alone, result = predictor.predict(face.pixels, face.points, face.box), rows_by_key[row["key"]]
            assert result["age"] == row["age"]
            assert (result["predicted"], result["low"], result["high"]) == pytest.approx(
                (alone.age[0], alone.low[0], alone.high[0]), abs=2e-3
            )
            ages.append(result["predicted"])
    assert len(ages) == len(rows_by_key)
    assert np.std(ages) > 0.3


def test_the_report_names_model_data_and_protocol(evaluated: Evaluated, model: Path, shards: Path) -> None:
    report = evaluated.report
    assert report["model"] == {
        "name": str(model),
        "network": "residual_cnn",
        "identity": bundle.load(str(model)).identity,
    }
    assert report["data"] == {"name": "drawn", "shards": str(shards), "landmarks": "auto"}
    assert report["protocol"] == PROTOCOL.model_dump()
    assert report["warnings"] == ["3 of 90 faces have no age and are left out"]
    assert evaluated.printed == [report]


def test_what_is_shown(evaluated: Evaluated, capsys: pytest.CaptureFixture[str]) -> None:
    tables.show(evaluated.report)
    text = capsys.readouterr().out
    assert "warning: 3 of 90 faces have no age" in text
    assert "warning: 2 faces cannot be used; report.json lists them" in text
    for figure in (
        f"{evaluated.report['mae']:.3f}",
        f"{evaluated.report['bias']:+.3f}",
        "always the training median, 41",
        "always this set's median",
    ):
        assert figure in text
    assert all(row["ages"] in text for row in evaluated.report["by_decade"])


# --- leaks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "warning"),
    [
        ([], None),
        (["protocol.seed=1"], "this split is not the one the model was trained on"),
        (["protocol.test=0.3"], "this split is not the one the model was trained on"),
        (
            ["protocol.name=all"],
            "the model was trained on 'drawn': with protocol.name=all its training faces are tested too",
        ),
        (["protocol.name=all", "data.name=strangers"], None),
    ],
)
def test_faces_that_the_model_may_know_are_told(
    words: list[str], warning: str | None, model: Path, shards: Path
) -> None:
    loaded = bundle.load(str(model))
    experiment = config.load([], [f"data.shards={shards}", *words], base=loaded.experiment)
    result = one_model._leak(loaded, experiment, parts_of(shards, experiment.protocol))
    assert [text[: len(warning or "")] for text in result] == ([] if warning is None else [warning])


def test_a_warning_reaches_the_report(anew: Evaluated, capsys: pytest.CaptureFixture[str]) -> None:
    assert anew.report["images"] == 90 - 3 - 2
    assert "its training faces are tested too" in anew.report["warnings"][3]
    assert anew.printed == [anew.report]
    tables.show(anew.report)
    assert "warning: the model was trained on 'drawn'" in capsys.readouterr().out


# --- mistakes -------------------------------------------------------------------------------------


def mistake(*words: str) -> str:
    with pytest.raises(UserError) as caught:
        job.main([*words, *SCALE])
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "word", ["model.dropout=0.5", "align.size=64", "loss.cross_entropy.weight=2", "train.seed=3"]
)
def test_keys_that_belong_to_the_model_are_refused(word: str, model: Path, tmp_path: Path) -> None:
    section = word.split(".")[0]
    text = mistake(str(model), word, "--out", str(tmp_path / "out"))
    assert (
        text == f"{section}: belongs to the model and was fixed when it was trained; "
        "give only data, protocol, scale, model.decode and train.calibrate"
    )
    assert not (tmp_path / "out").exists()


def test_a_key_given_as_the_model_has_it_is_no_change(model: Path, tmp_path: Path) -> None:
    assert "data.shards is not set" in mistake(str(model), "align.size=48", "--out", str(tmp_path))


def test_shards_that_are_not_named_or_not_there(model: Path, tmp_path: Path, ray_local: None) -> None:
    assert "data.shards is not set" in mistake(str(model), "--out", str(tmp_path))
    assert f"{tmp_path}/nowhere: there is no such folder" in mistake(
        str(model), f"data.shards={tmp_path}/nowhere", "--out", str(tmp_path)
    )


def test_a_protocol_without_test_faces(model: Path, shards: Path, tmp_path: Path, ray_local: None) -> None:
    assert "protocol" in mistake(
        str(model), f"data.shards={shards}", "protocol.test=0", "--out", str(tmp_path)
    )


def test_test_faces_of_which_none_can_be_used(model: Path, tmp_path: Path, ray_local: None) -> None:
    faces.write_faces_table(tmp_path / "bare", 20, size=80, landmarks=False)
    text = mistake(
        str(model), f"data.shards={tmp_path / 'bare'}", "protocol.name=all", "--out", str(tmp_path / "out")
    )
    assert (
        text == f"data.shards={tmp_path / 'bare'}: no test face can be used; "
        "the first of 20: no landmarks to align by"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["ageray", "train", "loss.neighborhood.sigma=5"],
            "error: data.shards is not set; name the folder that ageray prepare wrote",
        ),
        (
            ["ageray", "evaluate", "nowhere", "--out", "out"],
            "error: nowhere: not a model; name zoo:default, a bundle",
        ),
    ],
)
def test_exit_code_and_single_line_for_a_mistake(words: list[str], message: str, tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", *words], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(message)
    assert ended.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_help_is_worth_reading(name: str, tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "ageray", name, "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    for word in (
        "examples:",
        f"ageray {name} ",
        "configs/data/utkface.yaml",
        "RAY_ADDRESS",
        "Exit 0",
    ):
        assert word in ended.stdout
