"""A search: what it refuses before it starts, its proposals, and a small search on a real Ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml

from ageray import bundle, config, metrics
from ageray.commands import tune
from ageray.errors import UserError
from ageray.storage import lease
from ageray.synthetic import faces
from ageray.train.in_memory.face_cache import StoreRoom
from ageray.train.in_memory.slots import plan_slots
from ageray.tune import make, run, search
from ageray.tune.proposals import propose
from ageray.tune.searcher import Proposer
from ageray.tune.space import Space, check
from ageray.tune.trials import Trial

NOTHING = dict.fromkeys(("rotation", "scale", "translation", "brightness", "contrast", "saturation"), 0)
SIGMA, MARGIN = "loss.neighborhood.sigma", "loss.triplet.margin"
SPACE = {
    SIGMA: {"kind": "loguniform", "low": 1, "high": 20},
    MARGIN: {"kind": "uniform", "low": 0.1, "high": 2},
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "drawn"
    faces.write_faces_table(folder, 96, subjects=96, size=72)
    return folder


@pytest.fixture(scope="module")
def recipe(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A frozen backbone, so that an epoch takes milliseconds."""
    content = {
        "model": {"name": "deep_embedding", "backbone": "mobilenet_v1", "embedding": 8, "ages": [-15, 120]},
        "loss": {"neighborhood": {"normalize": True}, "triplet": {}},
        "align": {"size": 32},
        "train": {
            "batch_size": 16,
            "precision": "float32",
            "stages": [{"epochs": 3, "optimizer": {"lr": 3e-3, "body_lr": 0}}],
            "augment": {**NOTHING, "flip": 0.5},
        },
        "data": {"name": "drawn", "shards": str(shards)},
        "protocol": {"name": "random", "val": 0.2, "test": 0.3},
        "scale": {"gpu": False, "threads": 1, "progress": False, "object_store_mib": 256},
    }
    file = tmp_path_factory.mktemp("settings") / "recipe.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def written(recipe: Path, folder: Path, *words: str, **settings: Any) -> config.ParsedConfig:
    file = folder / "space.yaml"
    file.write_text(yaml.safe_dump({"tune": {"space": SPACE, **settings}}))
    return config.read([str(recipe), str(file)], words)


# --- what is refused before anything starts -----------------------------------------------------


def mistake(recipe: Path, folder: Path, *words: str, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        check(written(recipe, folder, *words, **settings))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def space_of(path: str, **dimension: Any) -> dict[str, Any]:
    return {"space": {path: {"kind": "uniform", "low": 1, "high": 2, **dimension}}}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            space_of("loss.neigborhood.sigma"),
            "space.yaml:3: loss.neigborhood.sigma: no such setting; did you mean 'loss.neighborhood.sigma'?",
        ),
        (space_of("loss.sigma"), "no such setting; did you mean 'loss.neighborhood.sigma'?"),
        (space_of("train.stages.0.optimizer.learning_rate"), "no such setting"),
        (space_of("loss.neighborhood"), "is a group of settings; name one, e.g. loss.neighborhood."),
        (
            space_of("loss.sord.alpha"),
            "loss.sord is off in this experiment; turn it on (loss.sord={}); or mark it optional: true",
        ),
        (space_of("loss.sord.alpha", optional=True), "nothing is left to search"),
        (space_of("align.coverage"), "align.coverage: is fixed in a search"),
        (space_of("train.seed"), "train.seed: is fixed in a search"),
        (space_of("train.stages.0.epochs"), "is fixed in a search"),
        (
            space_of(MARGIN, low=-1),
            "space.yaml:3: loss.triplet.margin: -1.0 is not allowed (allowed: a number, above 0)",
        ),
        (space_of(SIGMA, low=3), "low must be below high; got 3 and 2"),
        ({"space": {}}, "nothing to search"),
        (
            {"metric": "val_mea"},
            "'val_mea' is never reported; did you mean 'val_mae'? (reported: val_mae, loss, ",
        ),
        ({"metric": "loss.sord"}, "'loss.sord' is never reported"),
        (
            {"metric": "loss"},
            "loss is another quantity in each trial where loss.neighborhood.sigma is searched; use val_mae",
        ),
    ],
)
def test_a_search_that_cannot_be_is_refused_in_one_line(
    recipe: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    assert message in mistake(recipe, tmp_path, **settings)


def test_a_search_needs_a_space_faces_and_one_worker(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no search space is given"):
        check(config.read([str(recipe)]))
    for word, message in (
        ("protocol.val=0", "protocol.val: leaves no val faces"),
        ("protocol.test=0", "protocol.test: leaves no test faces"),
        ("scale.workers=2", "scale.workers=2: a trial trains on one worker"),
    ):
        with pytest.raises(UserError, match=message):
            make(written(recipe, tmp_path, word), str(tmp_path / "out"))


def test_a_batch_that_cannot_be_is_refused_before_the_start(recipe: Path, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"space": {"train.batch_size": {"kind": "choice", "values": [16, 4096]}}}
    with pytest.raises(UserError, match="train.batch_size=4096: there are only"):
        make(written(recipe, tmp_path, **sizes), str(tmp_path / "out"))
    sizes["space"]["train.batch_size"]["values"] = [16, 20]
    assert "train.batch_size=20 cannot be cut" in mistake(recipe, tmp_path, "train.accumulate=8", **sizes)


def test_only_a_search_takes_a_space(recipe: Path, tmp_path: Path) -> None:
    written(recipe, tmp_path)
    with pytest.raises(UserError, match=r"space\.yaml:1: tune: is for ageray tune alone"):
        config.load([str(recipe), str(tmp_path / "space.yaml")])


@pytest.mark.parametrize("name", ["loss", "lambda", "optimizer"])
def test_the_files_that_ship_fit_a_recipe(name: str) -> None:
    recipe = {"loss": "deep_embedding", "lambda": "cluster_cnn", "optimizer": "neighborhood"}[name]
    words = ["model.weights=none"]
    if name == "loss":
        # the paper's length is in steps; a search counts epochs
        words += ["model.backbone=resnet18", "train.stages.0.steps=null", "train.stages.0.epochs=30"]
    space = check(config.read([f"configs/{recipe}.yaml", f"configs/tune/{name}.yaml"], words))
    assert len(space.ranges) >= 3


# --- proposals ----------------------------------------------------------------------------------


@pytest.fixture
def space(recipe: Path, tmp_path: Path) -> Space:
    return check(written(recipe, tmp_path, startup=3))


def trial(number: int, values: dict[str, Any], score: float) -> Trial:
    return Trial(
        number,
        values,
        "finished",
        [{"epoch": 3, "epochs": 3, "val_mae": score, "seconds": 1.0}],
        "val_mae",
        number,
    )


def test_proposals_follow_from_what_was_tried_and_find_the_valley(space: Space) -> None:
    trials: list[Trial] = []
    for number in range(30):
        values = propose(space, number, trials)
        assert values == propose(space, number, trials[::-1])
        assert space.holds(values)
        trials.append(trial(number, values, abs(np.log(values[SIGMA] / 3)) + values[MARGIN]))
    assert trials[0].values == {SIGMA: 5.0, MARGIN: 0.5}
    early, late = (np.mean([each.score for each in part]) for part in (trials[:8], trials[-8:]))
    assert late < 0.6 * early


def test_a_trial_whose_process_died_is_proposed_once_more(space: Space) -> None:
    trials: list[Trial] = []
    proposer = Proposer(space, trials, lambda trial: None, lambda: 0.0, lambda record: None)

    def number(trial_id: str) -> Any:
        proposed = proposer.suggest(trial_id)
        assert isinstance(proposed, dict)
        return proposed["number"]

    assert [number("a"), number("b")] == [0, 1]
    proposer.on_trial_complete("a", error=True)
    assert number("c") == 0
    assert trials == []
    proposer.on_trial_complete("c", error=True)
    assert [(each.number, each.state, each.reason) for each in trials] == [
        (0, "failed", "its process died; see Ray's logs")
    ]
    for place in range(2, space.tune.trials):
        assert number(f"d{place}") == place
    assert proposer.suggest("e") is None  # those that run may come again
    for trial_id in ("b", *(f"d{place}" for place in range(2, space.tune.trials))):
        proposer.on_trial_complete(trial_id, {"failed": "a reason"})
    assert proposer.suggest("f") == proposer.FINISHED


# --- differences and seeds ----------------------------------------------------------------------


def test_the_noise_of_seeds_counts() -> None:
    """Two recipes that differ by the luck of one seed: no real difference."""
    rng = np.random.default_rng(0)
    true = rng.uniform(0, 80, 2000)
    base = true + rng.laplace(0, 5, (3, 2000))
    lucky = true + (base - true) * np.array([0.8, 1.0, 1.1])[:, None]
    steady = true + (base - true) * 0.95
    assert metrics.compare_seeds(true, steady, base)["p"] < 0.01
    comparison = metrics.compare_seeds(true, lucky, base)
    assert comparison["p"] > 0.2
    assert comparison["difference"]["low"] < 0 < comparison["difference"]["high"]
    assert comparison["deviation"]["seeds"] > 5 * comparison["deviation"]["faces"]


def test_intervals_over_seeds_hold_what_they_promise() -> None:
    rng, covered = np.random.default_rng(1), 0
    for _ in range(300):
        seed_noise = rng.normal(0, 0.1, (2, 3, 1))
        errors = np.abs(rng.normal(0, 5, 200))[None, None] + seed_noise + rng.normal(0, 0.5, (2, 3, 200)) + 20
        interval = metrics.compare_seeds(np.zeros(200), errors[0], errors[1])["difference"]
        covered += interval["low"] <= 0 <= interval["high"]
    assert 0.92 <= covered / 300 <= 1.0


# --- on Ray -------------------------------------------------------------------------------------

SMALL = {
    "trials": 3,
    "startup": 2,
    "at_once": 1,
    "asha": {"grace_epochs": 1, "reduction": 2},
    "finalists": {"count": 1, "seeds": 2},
}


def test_a_search_ends_with_a_page_and_a_bundle_and_goes_on_as_if_never_cut_off(
    recipe: Path, tmp_path: Path, ray_local: None
) -> None:
    records: list[dict[str, Any]] = []
    settings = written(recipe, tmp_path, **SMALL)
    out = tmp_path / "out"
    report = search(make(settings, str(out)), records.append)
    assert [each["number"] for each in report["trials"]] == [0, 1, 2]
    assert report["trials"][0]["values"] == report["recipe"] == {SIGMA: 5.0, MARGIN: 0.5}
    assert {each["state"] for each in report["trials"]} <= {"finished", "stopped"}
    assert report["finalists"][0]["name"] == "recipe"
    assert [record["kind"] for record in records if record["kind"] != "epoch"][:2] == ["start", "trial"]
    winner = bundle.load(str(out))
    assert winner.experiment.loss.neighborhood.sigma == report["winner"]["values"][SIGMA]
    assert winner.card["search"]["trials"] == 3
    assert winner.network()
    page = (out / "report.html").read_text()
    assert "<script" not in page
    assert "Importance" not in page or "fANOVA" in page
    with pytest.raises(UserError, match="holds a search; add --resume"):
        make(settings, str(out))
    with pytest.raises(UserError, match=r"tune\.seed: 0, now 1"):
        make(written(recipe, tmp_path, seed=1, **SMALL), str(out), resume=True)
    _cut(out / "trials.jsonl", 1)
    killed: dict[str, int] = {}

    def kill_the_trial(record: dict[str, Any]) -> None:
        """While it trains, and between two trials."""
        if record["kind"] not in ("epoch", "trial") or record["kind"] in killed:
            return
        for process in psutil.Process().children(recursive=True):
            if "Trainable" in " ".join(process.cmdline()):
                killed[record["kind"]] = process.pid
                process.kill()

    again = search(make(settings, str(out), resume=True), kill_the_trial)
    assert set(killed) == {"epoch", "trial"}
    for before, after in zip(report["trials"], again["trials"], strict=True):
        for name in ("values", "curve", "state"):
            assert before[name] == after[name]


def test_a_folder_in_use_is_refused(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_PERIOD", 0.1)
    plan = make(written(recipe, tmp_path), str(tmp_path / "search"))
    with lease.Lease(plan.file.folder), pytest.raises(UserError, match="another search is writing there"):
        search(plan, print)


def _cut(file: Path, lines: int) -> None:
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:lines]))


def test_a_gpu_that_the_cluster_lacks_is_refused_at_once(
    recipe: Path, tmp_path: Path, ray_local: None
) -> None:
    with pytest.raises(UserError, match="scale.gpu=true: the cluster has no GPU"):
        plan_slots(written(recipe, tmp_path, "scale.gpu=true").experiment.scale)


@pytest.mark.parametrize(
    ("room", "way"),
    [(10**9, "cache_faces"), (10**6, "stream_features"), (10**3, "cache_faces")],
    ids=["all fits", "the features fit", "nothing fits"],
)
def test_only_the_faces_of_the_split_are_decoded(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int, way: str
) -> None:
    """As pixels; where these do not fit and the backbone is frozen, as its features. `cache_faces`
    refuses what does not fit."""
    plan = make(written(recipe, tmp_path), str(tmp_path / "out"))
    parts = {name: keys[:3] for name, keys in plan.split.parts.items()}
    decoded = list[list[str]]()

    def stop(experiment: Any, labelled: Any, *others: Any) -> None:
        decoded.append(labelled.column("key").to_pylist())
        raise UserError("enough")

    monkeypatch.setattr(run, "plan_slots", lambda scale: None)
    monkeypatch.setattr(run, "store_room", lambda experiment, faces: StoreRoom(faces, 32, 10**8, room))
    monkeypatch.setattr(run, way, stop)
    with pytest.raises(UserError, match="enough"):
        search(replace(plan, split=replace(plan.split, parts=parts)), lambda record: None)
    assert sorted(decoded[0]) == sorted(key for keys in parts.values() for key in keys)


def test_the_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tune.main(["--help"])
    assert "configs/tune/loss.yaml" in capsys.readouterr().out


@pytest.mark.slow
def test_a_killed_search_loses_no_trial(recipe: Path, tmp_path: Path) -> None:
    written(recipe, tmp_path, **{**SMALL, "trials": 6})
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "ageray",
        "tune",
        str(recipe),
        str(tmp_path / "space.yaml"),
        "--out",
        str(out),
    ]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 400
    try:
        while not (out / "trials.jsonl").exists() and driver.poll() is None:
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.05)
    finally:
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
    before = (out / "trials.jsonl").read_text().splitlines()
    assert 1 <= len(before) < 6
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr
    after = (out / "trials.jsonl").read_text().splitlines()
    assert after[: len(before)] == before
    assert sorted(json.loads(line)["number"] for line in after) == list(range(6))
