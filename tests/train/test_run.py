"""Training end to end on a real Ray: files of a run, restarts after a crash, frozen backbones."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from ageray import bundle, cluster, config, metrics
from ageray.commands import train as job
from ageray.data import protocols, splits
from ageray.data.labelled_faces import labelled_faces
from ageray.data.stream import decode_rows
from ageray.errors import UserError
from ageray.models.build import build
from ageray.models.network import AgeNetwork
from ageray.predictor import Predictor
from ageray.train import plan
from tests.train.in_process import in_process
from tests.train.small import Run, descendants, labelled, last_state, trainers


@pytest.fixture(scope="module")
def run(settings: Path, ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(settings, tmp_path_factory.mktemp("runs"))


# --- what a run leaves behind -------------------------------------------------------------------


def test_a_worker_keeps_the_memory_that_it_frees(run: Run) -> None:
    [variables] = run.started_with
    assert {f"{name}={value}".encode() for name, value in cluster.environment().items()} <= set(
        variables.split(b"\0")
    )


def test_the_run_folder(run: Run, settings: Path) -> None:
    names = {file.name for file in run.folder.iterdir()}
    assert names == {
        *(
            "config.yaml",
            "split.parquet",
            "log.jsonl",
            "best.safetensors",
            "best.safetensors.sha256",
            "bundle",
            "state.pt",
            "state.before.pt",
            "curves.png",
            "tensorboard",
        ),
    }
    assert (run.folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert {file.name for file in (run.folder / "bundle").iterdir()} == {
        "model.safetensors",
        "config.yaml",
        "card.json",
    }
    assert run.folder.name == f"residual_cnn-drawn-{config.digest(run.experiment)}"
    elsewhere = config.load([str(settings)], ["scale.runs=/elsewhere", "scale.threads=7"])
    assert plan.run_folder(elsewhere) == f"/elsewhere/{run.folder.name}"


def test_the_settings_are_written_first_and_complete(run: Run) -> None:
    for folder in (run.folder, run.folder / "bundle"):
        assert config.loads((folder / "config.yaml").read_text(), "config.yaml") == run.experiment
    written = {file: file.stat().st_mtime_ns for file in run.folder.rglob("*") if file.is_file()}
    assert min(written, key=written.__getitem__) == run.folder / "config.yaml"


def test_the_split_is_that_of_the_protocol(run: Run, shards: Path) -> None:
    divided = protocols.split(labelled_faces(str(shards)), run.experiment.protocol)
    expected = divided.parts
    assert run.plan.facts["notes"] == divided.notes
    assert len(divided.notes) == 1
    assert divided.notes[0].endswith(
        "training and test faces have no subject: a person may be in both, and nothing tells"
    )
    assert splits.load(str(run.folder / "split.parquet")) == expected
    assert run.plan.parts == {name: len(keys) for name, keys in expected.items()}
    assert run.plan.steps == [64 // 16, len(expected["train"]) // 16]


def test_the_log_has_a_record_an_epoch(run: Run) -> None:
    log = run.log
    assert [(record["stage"], record["epoch"], record["epochs"]) for record in log] == [
        ("warm", 1, 3),
        ("main", 2, 3),
        ("main", 3, 3),
    ]
    broken = sum(key.startswith("broken") for key in splits.load(str(run.folder / "split.parquet"))["train"])
    assert broken > 2
    steps = 0
    for record, expected in zip(log, [run.plan.steps[0], run.plan.steps[1], run.plan.steps[1]], strict=True):
        done, steps = record["step"] - steps, record["step"]
        assert done == expected
        assert record["images"] == 16 * done  # a broken row's place is done by another face
        assert 0 <= record["stall"] < 1
        assert record["skipped"] == (0 if record["stage"] == "warm" else pytest.approx(broken, abs=16))
        assert (record["kind"], record["loss"]) == ("epoch", record["loss.neighborhood"])
        assert 1 < record["loss"] < 10
        assert 0 < record["val_mae"] < 80
        assert abs(record["val_bias"]) <= record["val_mae"]
        assert record["images_s"] > 0
        assert record["seconds"] > 0
    maes = [record["val_mae"] for record in log]
    assert [record["best"] for record in log] == [value == min(maes[: k + 1]) for k, value in enumerate(maes)]


def test_progress_is_shown_while_it_trains(run: Run) -> None:
    epochs = [record for record in run.shown if record["kind"] == "epoch"]
    assert epochs == run.log
    steps = [record for record in run.shown if record["kind"] == "step"]
    assert steps
    for record in steps:
        assert record.keys() == {"kind", "epoch", "epochs", "step", "steps", "images_s", "seconds"}
        assert 1 <= record["step"] <= record["steps"]
        assert record["steps"] == run.plan.steps[min(record["epoch"], 1)]


def test_the_bundle_is_the_best_epoch_stored_small(run: Run) -> None:
    best, stored = (
        load_file(run.folder / "best.safetensors"),
        load_file(run.folder / "bundle" / "model.safetensors"),
    )
    assert best.keys() == stored.keys()
    for name, tensor in best.items():
        torch.testing.assert_close(stored[name].to(tensor.dtype), tensor, rtol=1e-3, atol=1e-4)
    state = last_state(run.folder)
    assert state["average"] is not None
    if run.log[-1]["best"]:
        assert all(torch.equal(best[name], tensor) for name, tensor in state["average"].items())


def predicted(run: Run, shards: Path, part: str) -> tuple[Any, Any]:
    """True ages and the bundle's predictions of every readable face of a part."""
    predictor = Predictor(bundle.load(str(run.folder)), "cpu", threads=1)
    true, predictions = [], []
    for file in sorted(shards.glob("*.parquet")):
        table = pq.read_table(
            file, columns=["key", "image", "landmarks", "box", "age", "subject", "gender", "dataset"]
        )
        rows = decode_rows(
            table, run.experiment.align.model_dump(mode="json"), str(run.folder / "split.parquet"), part
        )
        fine = rows["error"] == ""
        true.append(rows["age"][fine])
        predictions.append(predictor.predict(rows["canvas"][fine], rows["points"][fine], rows["box"][fine]))
    columns = [
        np.concatenate([getattr(ages, name) for ages in predictions]) for name in ("age", "low", "high")
    ]
    return np.concatenate(true), columns


def test_the_card_tells_what_the_bundle_does(run: Run, shards: Path) -> None:
    card = json.loads((run.folder / "bundle" / "card.json").read_text())
    parts = splits.load(str(run.folder / "split.parquet"))
    ages = {row["key"]: row["age"] for row in labelled(shards)}
    training = [ages[key] for key in parts["train"]]
    assert (card["model"], card["epochs"]) == ("residual_cnn", 3)
    facts = card["training"]
    assert (
        facts["train_digest"]
        == splits.train_digest(parts["train"])
        != splits.train_digest(parts["train"][1:])
    )
    assert facts["train_ages"] == {"median": np.median(training), "min": min(training), "max": max(training)}
    assert facts["faces"] == {name: len(keys) for name, keys in parts.items()}
    assert (facts["data"], facts["outside_bins"]) == ("drawn", 0)
    assert facts["protocol"] == run.experiment.protocol.model_dump()
    true, (age, low, high) = predicted(run, shards, "val")
    assert card["calibration"]["faces"] == len(true) >= 30
    expected = metrics.summary(true, age, low, high, facts["train_ages"]["median"])
    assert card["validation"]["images"] == expected["images"]
    assert card["validation"]["mae"] == pytest.approx(expected["mae"], abs=0.02)
    assert card["validation"]["interval"]["coverage"] == pytest.approx(
        expected["interval"]["coverage"], abs=0.03
    )
    assert card["validation"]["interval"]["coverage"] >= 0.9
    assert card["validation"]["constant"] == expected["constant"]


# --- again --------------------------------------------------------------------------------------


def test_a_finished_run_is_refused(run: Run, settings: Path) -> None:
    with pytest.raises(UserError, match=rf"^{run.folder}: this run is finished; .* --fresh$"):
        job.main([str(settings), f"scale.runs={run.folder.parent}"])


@pytest.mark.slow
def test_fresh_repeats_a_finished_run(
    run: Run, settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / run.folder.name
    shutil.copytree(run.folder, folder)
    words = [str(settings), f"scale.runs={tmp_path}"]
    (folder / "stray").write_text("of an earlier run")
    job.main([*words, "--fresh"])
    assert not (folder / "stray").exists()
    printed = capsys.readouterr().out
    assert printed.startswith(f"run {folder}\nfaces {run.plan.parts['train']} train, ")
    card = json.loads((folder / "bundle" / "card.json").read_text())
    assert f"validation: MAE {card['validation']['mae']:.3f}" in printed
    assert printed.endswith(f"model: {folder}\n")
    assert printed.count("3/3") == 1
    # the same settings and seed: the same weights, in every bit
    assert card["sha256"] == json.loads((run.folder / "bundle" / "card.json").read_text())["sha256"]


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def checkpoints(folder: Path, count: int, over: Callable[[], bool]) -> None:
    """Waits until the run has written so many checkpoints, or is over."""
    seen = set[int]()
    end = time.monotonic() + 1500
    while len(seen) < count and not over():
        assert time.monotonic() < end, "waited in vain"
        with suppress(FileNotFoundError):
            seen.add((folder / "state.pt").stat().st_mtime_ns)
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_two_workers_one_of_them_killed_end_as_one_worker(run: Run, settings: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle of an epoch: the run goes on by itself from its checkpoint and its
    figures are those of one worker.
    """
    killed: list[int] = []

    def kill(folder: Path) -> None:
        checkpoints(folder, 3, lambda: (folder / "bundle").exists())
        killed.extend(trainers(os.getpid())[:1])
        for pid in killed:
            os.kill(pid, signal.SIGKILL)

    two = Run(settings, tmp_path, "scale.workers=2", watch=kill)
    assert killed
    [note] = [record["text"] for record in two.shown if record["kind"] == "note"]
    assert note == "a worker was lost; going on from the last checkpoint (1 of 3)"
    assert [record["step"] for record in two.log] == [record["step"] for record in run.log]
    for record, expected in zip(two.log, run.log, strict=True):
        assert (record["images"], record["skipped"]) == (expected["images"], expected["skipped"])
        assert record["loss"] == pytest.approx(expected["loss"], rel=2e-3)
        assert record["val_mae"] == pytest.approx(expected["val_mae"], abs=0.1)
    cards = [json.loads((each.folder / "bundle" / "card.json").read_text()) for each in (run, two)]
    assert cards[1]["validation"]["images"] == cards[0]["validation"]["images"]
    assert not (two.folder / "ray").exists()


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_as_many_workers_as_there_is_room_for(run: Run, settings: Path, tmp_path: Path) -> None:
    """An elastic number of workers takes two here; the batch stays what it is, and so do the
    figures. With a trace of ten steps.
    """
    most = 0

    def count(folder: Path) -> None:
        nonlocal most
        while not (folder / "log.jsonl").exists():
            most = max(most, len(trainers(os.getpid())))
            time.sleep(0.2)

    elastic = Run(settings, tmp_path, "scale.workers=[1, 2]", "scale.profile=true", watch=count)
    assert most == 2
    for record, expected in zip(elastic.log, run.log, strict=True):
        assert (record["step"], record["images"]) == (expected["step"], expected["images"])
        assert record["loss"] == pytest.approx(expected["loss"], rel=2e-3)
    assert json.loads((elastic.folder / "trace.json").read_text())["traceEvents"]


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_faces_aligned_by_actors_train_the_same_network(run: Run, settings: Path, tmp_path: Path) -> None:
    actors = Run(settings, tmp_path, "align.placement=actors")
    assert [record["loss"] for record in actors.log] == [record["loss"] for record in run.log]
    whole, theirs = (last_state(each.folder)["network"] for each in (run, actors))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in whole.items())


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
@pytest.mark.parametrize("victim", ["RayTrainWorker", "TrainController", "QueueActor", "driver"])
def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_happened(
    victim: str, run: Run, settings: Path, tmp_path: Path
) -> None:
    """Killed in the middle of an epoch, whoever is killed: every weight and figure is that of a run
    that was left alone.
    """
    command = [sys.executable, "-m", "ageray", "train", str(settings), f"scale.runs={tmp_path}"]
    folder = tmp_path / run.folder.name
    with (tmp_path / "said").open("w") as output:
        first = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        checkpoints(
            folder, 4, lambda: first.poll() is not None
        )  # after 3 and 4 steps, 6 and 9: the second epoch has begun
        family = descendants(first.pid)
        if victim != "driver":
            os.kill(trainers(first.pid, victim.encode())[0], signal.SIGKILL)
            assert first.wait(500) == 0, (tmp_path / "said").read_text()[-2000:]
            assert "a worker was lost" in (tmp_path / "said").read_text()
    finally:
        if first.poll() is None:
            os.kill(first.pid, signal.SIGKILL)
            first.wait()
    if victim == "driver":
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in family), 120)
        assert not (folder / "bundle").exists()
        progress = last_state(folder)["progress"]
        assert progress["epoch"] >= 1
        second = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
        assert second.returncode == 0, second.stderr[-2000:]
    whole, resumed = last_state(run.folder), last_state(folder)
    for name in ("network", "average"):
        assert all(torch.equal(tensor, resumed[name][key]) for key, tensor in whole[name].items()), name
    after = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    for name in ("loss", "val_mae", "images", "step"):
        assert [record[name] for record in after] == [record[name] for record in run.log]
    weights = [(place / "bundle" / "model.safetensors").read_bytes() for place in (run.folder, folder)]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_storage_that_fails_stops_the_run_and_leaves_the_last_checkpoint(
    settings: Path, tmp_path: Path, ray_local: None
) -> None:
    """Nothing can be written where the checkpoint's draft would stand, as on a full disk."""

    def spoil(folder: Path) -> None:
        checkpoints(folder, 2, lambda: (folder / "bundle").exists())
        shutil.copy(folder / "state.pt", tmp_path / "copy")
        folder.rename(tmp_path / "away")
        folder.write_text("no folder any more")

    with pytest.raises(
        UserError, match=r"state\.pt: .*(file or a folder|Not a directory|cannot be reached)"
    ) as caught:
        Run(settings, tmp_path / "runs", watch=spoil)
    assert "\n" not in str(caught.value)
    assert last_state(tmp_path / "away")["progress"]["step"] >= 3


# --- a frozen backbone ----------------------------------------------------------------------------

FROZEN = [
    "train.stages=[{name: head, epochs: 2, optimizer: {lr: 1e-2, body_lr: 0}}]",
    "train.augment={flip: 0, rotation: 0, scale: 0, translation: 0, brightness: 0, contrast: 0, "
    "saturation: 0}",
    "model.dropout=0",
    "loss.neighborhood.normalize=true",
]


def frozen_run(
    settings: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str
) -> tuple[Run, AgeNetwork]:
    """A run with a frozen body, and the network that it started from. `model.weights` is a path
    relative to the folder of the command, not to that of a worker."""
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    start = build(config.load([str(settings)], FROZEN).model, seed=3)
    tensors = {name: tensor.contiguous() for name, tensor in start.state_dict().items()}
    save_file(tensors, "start.safetensors")
    return Run(settings, folder / "runs", *FROZEN, "model.weights=start.safetensors", *words), start


def test_a_frozen_backbones_features_are_computed_once(
    settings: Path, tmp_path: Path, ray_local: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with in_process():
        run, start = frozen_run(settings, tmp_path, monkeypatch)
    notes = [record["text"] for record in run.shown if record["kind"] == "note"]
    assert any("features" in note for note in notes), notes
    model = bundle.load(str(run.folder))
    assert model.experiment.model.weights == "start.safetensors"
    body = model.network().get_backbone().state_dict()
    for name, tensor in start.get_backbone().state_dict().items():
        torch.testing.assert_close(body[name].float(), tensor.float(), rtol=1e-3, atol=1e-3)
    losses = [record["loss"] for record in run.log]
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_features_train_the_head_that_pixels_train(
    settings: Path, tmp_path: Path, ray_local: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head is that of a run that reads pixels in every epoch (`align.placement: actors`)."""
    by_features, start = frozen_run(settings, tmp_path / "features", monkeypatch)
    by_pixels, _ = frozen_run(settings, tmp_path / "pixels", monkeypatch, "align.placement=actors")
    assert not any(record["kind"] == "note" for record in by_pixels.shown)
    heads, bodies = [], []
    for run in (by_features, by_pixels):
        network = bundle.load(str(run.folder)).network()
        heads.append([parameter.detach() for parameter in network.head_parameters()])
        bodies.append(network.get_backbone().state_dict())
    for one, other in zip(*heads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=2e-3)
    for name, tensor in start.get_backbone().state_dict().items():
        torch.testing.assert_close(bodies[0][name].float(), tensor.float(), rtol=1e-3, atol=1e-3)
    losses = [record["loss"] for record in by_pixels.log]
    assert [record["loss"] for record in by_features.log] == pytest.approx(losses, rel=1e-3)
    skipped = [record["skipped"] for record in by_pixels.log]
    assert [record["skipped"] for record in by_features.log] == skipped


def test_paths_for_workers_are_absolute_and_names_stay(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)

    def located(*words: str) -> tuple[str, str | None]:
        experiment = config.with_absolute_paths(config.load([], ["model.name=baseline", *words]))
        return experiment.model.weights, experiment.train.teacher

    assert located() == ("none", None)
    assert located("model.weights=imagenet", "train.teacher=start") == ("imagenet", "start")
    assert located("train.teacher=zoo:default") == ("none", "zoo:default")
    assert located("model.weights=s3://b/w", "train.teacher=runs/a") == ("s3://b/w", str(tmp_path / "runs/a"))
    assert located("model.weights=w.safetensors")[0] == str(tmp_path / "w.safetensors")
