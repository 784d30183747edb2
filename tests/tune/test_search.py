"""A search: what it refuses before anything starts, proposals that depend on nothing but what was tried, and a small one on a real Ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ageray import bundle, config, metrics
from ageray.errors import UserError
from ageray.synthetic import faces
from ageray.train.in_memory.slots import share_out
from ageray.tune import make, search
from ageray.tune.proposals import propose
from ageray.tune.space import Space, check
from ageray.tune.trials import Trial
from jobs import tune

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
    """A frozen body, so that an epoch takes a blink."""
    content = {
        "model": {"name": "deep_embedding", "backbone": "resnet18", "embedding": 8, "ages": [-15, 120]},
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


# --- what is refused before anything starts -------------------------------------------------------------------------


def mistake(recipe: Path, folder: Path, *words: str, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        check(written(recipe, folder, *words, **settings))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def one(path: str, **dimension: Any) -> dict[str, Any]:
    return {"space": {path: {"kind": "uniform", "low": 1, "high": 2, **dimension}}}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            one("loss.neigborhood.sigma"),
            "space.yaml:3: loss.neigborhood.sigma: no such setting; did you mean 'loss.neighborhood.sigma'?",
        ),
        (one("loss.sigma"), "no such setting; did you mean 'loss.neighborhood.sigma'?"),
        (one("train.stages.0.optimizer.learning_rate"), "no such setting"),
        (one("loss.neighborhood"), "is a group of settings; name one, e.g. loss.neighborhood."),
        (
            one("loss.sord.alpha"),
            "loss.sord is off in this experiment; turn it on (loss.sord={}); or mark it optional: true",
        ),
        (one("loss.sord.alpha", optional=True), "nothing is left to search"),
        (one("align.coverage"), "align.coverage: is held fixed in a search"),
        (one("train.seed"), "train.seed: is held fixed in a search"),
        (one("train.stages.0.epochs"), "is held fixed in a search"),
        (
            one(MARGIN, low=-1),
            "space.yaml:3: loss.triplet.margin: -1.0 is not allowed (allowed: a number, above 0)",
        ),
        (one(SIGMA, low=3), "low must be below high; got 3 and 2"),
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
def test_a_search_that_cannot_be_is_told_in_one_line(
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


def test_only_a_search_takes_a_space(recipe: Path, tmp_path: Path) -> None:
    written(recipe, tmp_path)
    with pytest.raises(UserError, match=r"space\.yaml:1: tune: is for jobs\.tune alone"):
        config.load([str(recipe), str(tmp_path / "space.yaml")])


@pytest.mark.parametrize("name", ["loss", "lambda", "optimizer"])
def test_the_files_that_ship_fit_a_recipe(name: str) -> None:
    recipe = {"loss": "deep_embedding", "lambda": "cluster_cnn", "optimizer": "neighborhood"}[name]
    words = ["model.weights=none"]
    if name == "loss":
        words.append("model.backbone=resnet18")
    found = check(config.read([f"configs/{recipe}.yaml", f"configs/tune/{name}.yaml"], words))
    assert len(found.ranges) >= 3


# --- proposals ------------------------------------------------------------------------------------------------------


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
    tried: list[Trial] = []
    for number in range(30):
        values = propose(space, number, tried)
        assert values == propose(space, number, tried[::-1])
        assert space.holds(values)
        tried.append(trial(number, values, abs(np.log(values[SIGMA] / 3)) + values[MARGIN]))
    assert tried[0].values == {SIGMA: 5.0, MARGIN: 0.5}
    early, late = (np.mean([each.score for each in part]) for part in (tried[:8], tried[-8:]))
    assert late < 0.6 * early


# --- differences and seeds ------------------------------------------------------------------------------------------


def test_the_noise_of_seeds_counts() -> None:
    """Two recipes that differ by a seed's luck alone: the same interval over faces, but no real difference."""
    rng = np.random.default_rng(0)
    true = rng.uniform(0, 80, 2000)
    base = true + rng.laplace(0, 5, (3, 2000))
    lucky = true + (base - true) * np.array([0.8, 1.0, 1.1])[:, None]
    steady = true + (base - true) * 0.95
    assert metrics.compare_seeds(true, steady, base)["p"] < 0.01
    found = metrics.compare_seeds(true, lucky, base)
    assert found["p"] > 0.2
    assert found["difference"]["low"] < 0 < found["difference"]["high"]
    assert found["deviation"]["seeds"] > 5 * found["deviation"]["faces"]


def test_intervals_over_seeds_hold_what_they_promise() -> None:
    rng, held = np.random.default_rng(1), 0
    for _ in range(300):
        seed_noise = rng.normal(0, 0.1, (2, 3, 1))
        errors = np.abs(rng.normal(0, 5, 200))[None, None] + seed_noise + rng.normal(0, 0.5, (2, 3, 200)) + 20
        found = metrics.compare_seeds(np.zeros(200), errors[0], errors[1])["difference"]
        held += found["low"] <= 0 <= found["high"]
    assert 0.92 <= held / 300 <= 1.0


# --- on Ray ---------------------------------------------------------------------------------------------------------

SMALL = {
    "trials": 4,
    "startup": 2,
    "at_once": 1,
    "asha": {"grace_epochs": 1, "reduction": 2},
    "finalists": {"count": 1, "seeds": 2},
}


def test_a_search_ends_with_a_page_and_a_bundle_and_goes_on_as_if_never_cut_off(
    recipe: Path, tmp_path: Path, ray_local: None
) -> None:
    shown: list[dict[str, Any]] = []
    settings = written(recipe, tmp_path, **SMALL)
    out = tmp_path / "out"
    found = search(make(settings, str(out)), shown.append)
    assert [each["number"] for each in found["trials"]] == [0, 1, 2, 3]
    assert found["trials"][0]["values"] == found["recipe"] == {SIGMA: 5.0, MARGIN: 0.5}
    assert {each["state"] for each in found["trials"]} <= {"finished", "stopped"}
    assert found["finalists"][0]["name"] == "recipe"
    assert [record["kind"] for record in shown if record["kind"] != "epoch"][:2] == ["start", "trial"]
    made = bundle.load(str(out))
    assert made.experiment.loss.neighborhood.sigma == found["winner"]["values"][SIGMA]
    assert made.card["search"]["trials"] == 4
    assert made.network()
    page = (out / "report.html").read_text()
    assert "<script" not in page
    assert "Importance" not in page or "fANOVA" in page
    with pytest.raises(UserError, match="holds a search; add --resume"):
        make(settings, str(out))
    with pytest.raises(UserError, match=r"tune\.seed: 0 there, 1 here"):
        make(written(recipe, tmp_path, seed=1, **SMALL), str(out), resume=True)
    _cut(out / "trials.jsonl", 2)
    again = search(make(settings, str(out), resume=True), lambda record: None)
    told = [
        [(each["values"], each["curve"], each["state"]) for each in report["trials"]]
        for report in (found, again)
    ]
    assert told[0] == told[1]


def _cut(file: Path, lines: int) -> None:
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:lines]))


def test_a_gpu_where_there_is_none_is_told_at_once(recipe: Path, tmp_path: Path, ray_local: None) -> None:
    with pytest.raises(UserError, match="scale.gpu=true: the cluster has no GPU"):
        share_out(written(recipe, tmp_path, "scale.gpu=true").experiment.scale)


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
        "jobs.tune",
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
