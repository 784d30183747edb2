"""Mistakes in the settings of a training, and faces that it cannot use."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ageray import config
from ageray.commands import cli
from ageray.commands import train as job
from ageray.data import splits
from ageray.errors import UserError
from ageray.synthetic import faces
from ageray.train import plan
from ageray.train import run as train_run
from tests.train.in_process import in_process
from tests.train.small import labelled, mistake


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["data.shards=null"],
            "data.shards is not set; name the folder that ageray prepare wrote, "
            "e.g. data.shards=shards/utkface",
        ),
        (
            ["data.shards=PLACE/nowhere"],
            "data.shards=PLACE/nowhere: there is no such folder; write it with ageray prepare",
        ),
        (
            ["data.shards=PLACE/empty"],
            "data.shards=PLACE/empty: holds no face shards (.parquet); write them with ageray prepare",
        ),
        (
            ["train.batch_size=200"],
            "train.batch_size=200: PLACE/warm has only 64 training faces; lower it or add faces",
        ),
        (
            ["train.stages.0.shards=PLACE/empty"],
            "PLACE/empty: holds no face shards (.parquet); write them with ageray prepare",
        ),
        (["loss.neighborhood=null"], "loss: no term is configured; name at least one of "),
        (
            ["scale.workers=3"],
            "train.batch_size=16: cannot be cut into equal parts for 3 workers; "
            "choose a multiple of 3, or other scale.workers",
        ),
        (["scale.workers=[4, 2]"], "scale.workers=[4, 2]: give the least number first"),
        (
            ["scale.workers=8", "train.accumulate=4"],
            "for 8 workers in 4 pieces each (train.accumulate); choose a multiple of 32",
        ),
        (["protocol.val=0.99", "protocol.test=0"], "has only 3 training faces; lower it or add faces"),
        (["model.weights=PLACE/none.safetensors"], "PLACE/none.safetensors: not found"),
        (
            ["align.placement=actors", "train.sizes=[32, 64]"],
            "align.placement=actors: aligns at one size, not at train.sizes; set align.placement=worker",
        ),
        (
            ["train.sizes=[64, 24]"],
            "train.sizes.1=24: model 'residual_cnn' needs faces of at least 32 pixels",
        ),
    ],
)
def test_mistakes_that_are_found_before_anything_is_written(
    words: list[str], message: str, settings: Path, tmp_path: Path
) -> None:
    (settings.parent / "empty").mkdir(exist_ok=True)
    place = str(settings.parent)
    report = mistake(settings, tmp_path / "runs", *[word.replace("PLACE", place) for word in words])
    assert message.replace("PLACE", place) in report
    assert not (tmp_path / "runs").exists()


def test_a_misspelt_loss(settings: Path, tmp_path: Path) -> None:
    assert "neighborhood" in mistake(settings, tmp_path, "loss.neighbourhood.sigma=3")


@pytest.mark.parametrize("content", ["another table", "no Parquet"])
def test_shards_that_are_none(content: str, settings: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    if content == "another table":
        pq.write_table(pa.table({"photo": ["a.jpg"], "age": [3.0]}), tmp_path / "other" / "part.parquet")
    else:
        (tmp_path / "other" / "part.parquet").write_bytes(b"nonsense")
    assert str(tmp_path / "other") in mistake(
        settings, tmp_path / "runs", f"data.shards={tmp_path / 'other'}"
    )


def test_a_gpu_where_there_is_none(settings: Path, tmp_path: Path, ray_local: None) -> None:
    assert mistake(settings, tmp_path, "scale.gpu=true").startswith(
        "scale.gpu=true: the cluster has 0 GPUs for 1 workers; set scale.gpu=false"
    )
    for words in (
        ["scale.workers=16"],
        ["scale.workers=[8, 16]", "train.batch_size=720720"],
        ["scale.cpus_per_worker=9"],
    ):
        with pytest.raises(
            UserError,
            match=r"^scale.workers=\d+: the cluster has room for [03] workers of [19] CPUs each beside",
        ):
            train_run._scaling(config.load([str(settings)], words))
    assert not [thread.name for thread in threading.enumerate() if "(_listen)" in thread.name]


@pytest.mark.slow
def test_a_loss_that_cannot_be_finite(settings: Path, tmp_path: Path, ray_local: None) -> None:
    """A learning rate that throws the weights out stops the run with term and step; it is no
    mistake of a setting's form.
    """
    words = [str(settings), f"scale.runs={tmp_path}", "train.stages=[{optimizer: {name: sgd, lr: 1e30}}]"]
    with pytest.raises(Exception, match=r"step \d+: loss term loss, neighborhood is not finite") as caught:
        job.main(words)
    assert cli.mistake_behind(caught.value) is None
    assert not list(tmp_path.glob("*/bundle"))


def test_faces_of_which_none_can_be_used(settings: Path, tmp_path: Path, ray_local: None) -> None:
    """Shards without the landmarks that the alignment needs: said, instead of a bundle of untrained
    weights.
    """
    faces.write_faces_table(tmp_path / "bare", 60, size=80, landmarks=False)
    with pytest.raises(Exception, match="landmarks") as caught, in_process():
        job.main(
            [
                str(settings),
                f"scale.runs={tmp_path}",
                f"data.shards={tmp_path / 'bare'}",
                "train.stages=[{epochs: 1}]",
            ]
        )
    error = cli.mistake_behind(caught.value)
    assert error is not None
    assert str(error).startswith(f"data.shards={tmp_path / 'bare'}: ")
    assert not list(tmp_path.glob("*/bundle"))


def test_the_log_of_a_run_without_validation_faces_is_json() -> None:
    line = plan.to_lines([{"epoch": 1, "val_mae": float("nan"), "loss": 4.5, "best": True}])
    assert json.loads(line, parse_constant=pytest.fail) == {
        "epoch": 1,
        "val_mae": None,
        "loss": 4.5,
        "best": True,
    }


def test_training_ages_outside_the_bins_are_counted(settings: Path, tmp_path: Path, shards: Path) -> None:
    experiment = config.load([str(settings)], ["model.ages=[10, 50]", f"scale.runs={tmp_path}"])
    run = plan.make(experiment)
    ages = {row["key"]: row["age"] for row in labelled(shards)}
    training = [ages[key] for key in splits.load(str(Path(run.folder) / "split.parquet"))["train"]]
    assert run.facts["outside_bins"] == sum(age < 10 or age > 50 for age in training) > 0
