"""Evaluations as users ask for them: the audit of planted leaks, several models compared, models
against sets, mistakes in the command."""

from __future__ import annotations

import io
import json
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ageray import bundle
from ageray.audit import fingerprint_table
from ageray.commands import evaluate as job
from ageray.data import protocols
from ageray.data.labelled_faces import labelled_faces
from ageray.data.splits import train_digest
from ageray.errors import UserError
from ageray.evaluate import split_audit
from ageray.experiment import Align, Experiment, Protocol
from ageray.models.build import build
from ageray.synthetic import faces as synthetic_faces

ALIGN, PROTOCOL = Align(size=32), Protocol(val=0.1, test=0.4)
SCALE = [
    "scale.threads=1",
    "scale.progress=false",
    "scale.decode_batch=16",
    "scale.gpu=false",
    "scale.score_batch=32",
]


def reencoded(image: bytes) -> bytes:
    """The same picture, smaller and as a JPEG."""
    sink = io.BytesIO()
    picture = Image.open(io.BytesIO(image)).convert("RGB")
    picture.resize((72, 72)).save(sink, "JPEG", quality=85)
    return sink.getvalue()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 drawn faces of 30 people, with two planted leaks.

    One test picture is a copy of a training picture, another one is the same picture in another
    encoding. Both ages are 10 years above that of the training picture.
    """
    folder = tmp_path_factory.mktemp("shards") / "drawn"
    (file,) = synthetic_faces.write_faces_table(folder, 60, subjects=30, size=80)
    table = pq.read_table(file)
    rows = {row["key"]: row for row in table.to_pylist()}
    parts = parts_of(folder)
    for tested, trained, change in zip(
        parts["test"][:2], parts["train"][:2], (bytes, reencoded), strict=True
    ):
        rows[tested] |= {"image": change(rows[trained]["image"]), "age": rows[trained]["age"] + 10}
    pq.write_table(pa.Table.from_pylist(list(rows.values()), schema=table.schema), file)
    return folder


def parts_of(shards: Path, protocol: Protocol = PROTOCOL) -> dict[str, list[str]]:
    return protocols.split(labelled_faces(str(shards)), protocol).parts


def write_model(folder: Path, shards: Path, data: str, middle: float) -> str:
    """A bundle that predicts about `middle` years; its card names the training part of `shards`."""
    settings = Experiment.model_validate(
        {
            "model": {"name": "residual_cnn", "width": 0.25, "ages": [-15, 120]},
            "align": ALIGN,
            "train": {"precision": "float32"},
            "data": {"name": data, "shards": str(shards)},
            "protocol": PROTOCOL,
        }
    )
    network = build(settings.model, seed=0)
    with torch.no_grad():
        network.head.bias.copy_(-((torch.arange(-15.0, 121) - middle) / 8).square())
    facts = {
        "data": data,
        "train_digest": train_digest(parts_of(shards)["train"]),
        "train_ages": {"median": 41.0},
    }
    bundle.save(str(folder), network, settings, {"training": facts})
    return str(folder)


@pytest.fixture(scope="module")
def models(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("models")
    return [
        write_model(folder / "near", shards, "drawn", 40),
        write_model(folder / "far", shards, "drawn", 115),
    ]


@pytest.fixture(scope="module")
def compared(
    models: list[str], shards: Path, ray_local: None, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("compared")
    job.main([*models, "--out", str(out), *SCALE])
    return out


def report_of(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return result


# --- audit ----------------------------------------------------------------------------------------


def test_the_report_finds_the_planted_leaks(compared: Path, shards: Path) -> None:
    parts, audit = parts_of(shards), report_of(compared / "0-near")["audit"]
    assert audit["images"] == {"train": len(parts["train"] + parts["val"]), "test": len(parts["test"])}
    assert audit["subjects"]["shared"] == 0
    assert audit["byte_identical"]["across"] == 1
    assert audit["near_identical"]["across"] == 2
    assert sorted(map(tuple, audit["near_identical"]["examples"])) == sorted(
        zip(parts["test"][:2], parts["train"][:2], strict=True)
    )
    assert audit["conflicts"]["identical"]["groups"] == 1
    assert audit["conflicts"]["near"]["differ"] == 2
    assert audit["against"] == f"the {len(parts['train'] + parts['val'])} faces of this set that do not test"
    page = (compared / "0-near" / "report.html").read_text()
    assert page.index("Audit") < page.index("Accuracy")


def test_fingerprints_are_taken_once_and_anew_when_the_shards_change(
    shards: Path, compared: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("read the shards again")

    monkeypatch.setattr(fingerprint_table, "read_faces", refuse)
    stored = fingerprint_table.load_or_compute_fingerprints(str(shards))
    assert stored.schema == fingerprint_table.FINGERPRINTS_SCHEMA
    assert sorted(stored.column("key").to_pylist()) == sorted(chain.from_iterable(parts_of(shards).values()))
    assert stored.column("phash").null_count == 0
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in shards.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert fingerprint_table.load_or_compute_fingerprints(str(copy)).equals(stored)
    (file,) = copy.glob("*.parquet")
    table = pq.read_table(file)
    pq.write_table(table.slice(1), file)
    with pytest.raises(AssertionError, match="read the shards again"):
        fingerprint_table.load_or_compute_fingerprints(str(copy))


def test_a_broken_file_of_fingerprints_is_no_obstacle(shards: Path, ray_local: None, tmp_path: Path) -> None:
    (tmp_path / "faces.parquet").write_bytes(next(shards.glob("*.parquet")).read_bytes())
    (tmp_path / fingerprint_table.FILE).write_bytes(b"cut short")
    assert fingerprint_table.load_or_compute_fingerprints(str(tmp_path)).num_rows == 60
    assert (tmp_path / fingerprint_table.FILE).stat().st_size > 1000


def training(
    model: str, shards: Path, trained_on: str | None = None, **data: Any
) -> split_audit.Training | str:
    loaded = bundle.load(model)
    experiment = loaded.experiment.model_copy(update={"data": loaded.experiment.data.model_copy(update=data)})
    faces = labelled_faces(str(shards))
    return split_audit.training_side(model, loaded, experiment, faces, parts_of(shards), trained_on)


def test_another_set_is_compared_with_what_trained_the_model(models: list[str], shards: Path) -> None:
    """The card's digest confirms the settings' split. If it does not, all faces count."""
    result, parts = training(models[0], shards, name="strangers"), parts_of(shards)
    assert isinstance(result, split_audit.Training)
    assert sorted(result.faces.column("key").to_pylist()) == sorted(parts["train"] + parts["val"])
    loaded = bundle.load(models[0])
    bundle.write_card(
        models[0], loaded.card | {"training": loaded.card["training"] | {"train_digest": "other"}}
    )
    whole = training(models[0], shards, name="strangers")
    bundle.write_card(models[0], loaded.card)
    assert isinstance(whole, split_audit.Training)
    assert whole.faces.num_rows == 60
    assert "the model's own split is not known" in whole.name


def test_shards_that_are_not_at_hand(models: list[str], shards: Path, tmp_path: Path) -> None:
    loaded = bundle.load(models[0])
    moved = loaded.experiment.model_copy(
        update={"data": loaded.experiment.data.model_copy(update={"shards": str(tmp_path / "gone")})}
    )
    bundle.save(str(tmp_path / "moved"), loaded.network(), moved, {"training": loaded.card["training"]})
    text = training(str(tmp_path / "moved"), shards, name="strangers")
    assert (
        text
        == "the model was trained on 'drawn', whose shards are not at hand; name them with --trained-on DIR"
    )
    assert isinstance(
        training(str(tmp_path / "moved"), shards, str(shards), name="strangers"), split_audit.Training
    )


# --- several models -------------------------------------------------------------------------------


def test_models_are_compared_on_the_same_faces(compared: Path, models: list[str], shards: Path) -> None:
    result = report_of(compared)
    near, far = (report_of(compared / name) for name in ("0-near", "1-far"))
    assert [row["name"] for row in result["models"]] == models
    assert [row["mae"]["value"] for row in result["models"]] == [near["mae"], far["mae"]]
    (pair,) = result["pairs"]
    assert pair["difference"]["value"] == pytest.approx(near["mae"] - far["mae"])
    assert pair["difference"]["high"] < 0
    assert pair["real"]
    assert result["images"] == len(parts_of(shards)["test"])
    for row in result["models"]:
        assert (compared / row["report"]).is_file()
    page = (compared / "report.html").read_text()
    assert all(row["report"] in page for row in result["models"])


def test_one_embedding_a_tested_face_is_drawn(compared: Path) -> None:
    assert "Embedding" in (compared / "0-near" / "report.html").read_text()


def test_quantiles_grow_with_their_levels(compared: Path) -> None:
    rows = pq.read_table(compared / "0-near" / "predictions.parquet")
    spread = np.array(rows.column("quantiles").to_pylist())
    assert spread.shape == (rows.num_rows, len(report_of(compared / "0-near")["levels"]))
    assert (np.diff(spread, axis=1) >= 0).all()


# --- models against sets --------------------------------------------------------------------------


@pytest.mark.slow
def test_every_model_on_every_set(models: list[str], shards: Path, ray_local: None, tmp_path: Path) -> None:
    """A model is tested on the test part of its own set, and on all faces of another set."""
    synthetic_faces.write_faces_table(tmp_path / "others", 20, seed=5, size=80)
    for name, folder in (("drawn", shards), ("others", tmp_path / "others")):
        (tmp_path / f"{name}.yaml").write_text(
            f"data:\n  name: {name}\n  shards: {folder}\nprotocol:\n  name: random\n  test: 0.9\n"
        )
    job.main(
        [
            "--cross",
            models[0],
            str(tmp_path / "drawn.yaml"),
            str(tmp_path / "others.yaml"),
            "--out",
            str(tmp_path / "out"),
            *SCALE,
        ]
    )
    result = report_of(tmp_path / "out")
    assert (result["models"], result["sets"]) == ([models[0]], ["drawn", "others"])
    (own, other) = result["cells"][0]
    assert (own["own"], own["images"]) == (True, len(parts_of(shards)["test"]))
    assert (other["own"], other["images"]) == (False, 20)
    assert own["warnings"] == []
    assert (tmp_path / "out" / other["report"]).is_file()
    assert "report.html" in (tmp_path / "out" / "report.html").read_text()


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["data.name=drawn"],
            "no MODEL is named; give zoo:NAME, a bundle or a run folder (or --protocol NAME with a recipe)",
        ),
        (["MODEL", "MODEL"], "the same model is named twice; name each once"),
        (
            ["--cross", "MODEL", "data.name=drawn"],
            "--cross: no set is named; give a FILE.yaml with data for each, e.g. configs/data/fgnet.yaml",
        ),
        (
            ["--protocol", "lopo", "MODEL"],
            "MODEL: --protocol lopo trains its own models; give a recipe (FILE.yaml), no MODEL",
        ),
        (["MODEL", "--trained-on", "nowhere"], "--trained-on nowhere: there is no such folder"),
    ],
)
def test_mistakes_in_the_command(
    words: list[str], message: str, models: list[str], ray_local: None, tmp_path: Path
) -> None:
    arguments = [models[0] if word == "MODEL" else word for word in words]
    with pytest.raises(UserError) as caught:
        job.main([*arguments, "--out", str(tmp_path / "out"), *SCALE])
    assert str(caught.value).replace(models[0], "MODEL").startswith(message)
    assert not (tmp_path / "out").exists()


def test_models_of_different_splits_are_not_compared(
    models: list[str], shards: Path, ray_local: None, tmp_path: Path
) -> None:
    loaded = bundle.load(models[1])
    other = loaded.experiment.model_copy(update={"protocol": Protocol(val=0.1, test=0.3)})
    bundle.save(str(tmp_path / "other"), loaded.network(), other, loaded.card)
    with pytest.raises(
        UserError,
        match=r"^protocol\.test: .* has 0\.4, .* has 0\.3; to test both on the same faces give protocol\.t",
    ):
        job.main([models[0], str(tmp_path / "other"), "--out", str(tmp_path / "out"), *SCALE])
