"""Training on several sets of faces."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from ageray import config
from ageray.data import splits
from ageray.errors import UserError
from ageray.synthetic import faces
from ageray.train import plan
from tests.train.in_process import in_process
from tests.train.small import Run


@pytest.fixture(scope="module")
def two_sets(settings: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small experiment on the drawn faces and 64 others, which come twice and whose labels are
    uncertain."""
    folder = tmp_path_factory.mktemp("two-sets")
    faces.write_faces_table(folder / "more", 64, seed=3, size=80)
    content = yaml.safe_load(settings.read_text())
    content.pop("protocol")
    content["train"]["stages"] = [{"name": "main", "epochs": 1, "optimizer": {"lr": 1e-3}}]
    content["train"] |= {"select": "decades", "balance": "resample", "balance_power": 0.25}
    content["loss"] = {"dldl_v2": {"label_std": True}}
    content["data"] = {
        "name": "both",
        "sets": [
            {"name": "drawn", "shards": str(shards), "protocol": {"val": 0.2, "test": 0.2}},
            {
                "name": "more",
                "shards": str(folder / "more"),
                "weight": 2,
                "age_std": 2,
                "protocol": {"name": "random", "val": 0.25, "test": 0},
            },
        ],
    }
    file = folder / "two.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def test_a_plan_of_several_sets(two_sets: Path, tmp_path: Path, shards: Path) -> None:
    experiment = config.load([str(two_sets)], [f"scale.runs={tmp_path}"])
    made = plan.make(experiment)
    train, val = made.faces["train"], made.faces["val"]
    assert len(train) - train.starts[1] == 48
    assert len(val) - val.starts[1] == 16
    assert train.age_std is not None
    assert set(train.age_std[: train.starts[1]]) == {0.0}
    assert set(train.age_std[train.starts[1] :]) == {2.0}
    assert made.steps == [(train.starts[1] + 2 * 48) // 16]
    alone = plan.make(
        config.load(
            [str(two_sets)],
            [
                f"scale.runs={tmp_path}",
                "data.sets=[]",
                f"data.shards={shards}",
                "protocol.val=0.2",
                "protocol.test=0.2",
            ],
        )
    )
    # a set's split is the one that it has alone
    assert np.array_equal(alone.faces["train"].key_hash, train.key_hash[: train.starts[1]])
    assert [each["name"] for each in made.facts["sets"]] == ["drawn", "more"]


def test_a_run_on_several_sets(two_sets: Path, ray_local: None, tmp_path: Path) -> None:
    with in_process():
        run = Run(two_sets, tmp_path)
    (record,) = run.log
    assert record["images"] == run.plan.steps[0] * 16
    assert record["best"]
    assert 0 < record["val_decades"] < 60
    card = json.loads((run.folder / "bundle" / "card.json").read_text())
    assert card["validation"]["images"] == sum(run.plan.faces["val"].starts[1:]) + 16 - len(
        [key for key in splits.load(str(run.folder / "split.parquet"))["val"] if key.startswith("broken")]
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.sets.1.name=drawn"], "the name 'drawn' is there twice"),
        (["data.shards=elsewhere"], "shards=elsewhere and sets exclude each other"),
        (["align.placement=actors"], "works with data.shards, not with data.sets"),
        (
            ["data.sets.1.protocol.name=all"],
            "data.sets, 'more': protocol.name=all: leaves no face to train on",
        ),
    ],
)
def test_mistakes_with_several_sets(two_sets: Path, tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        plan.make(config.load([str(two_sets)], [f"scale.runs={tmp_path}", *words]))


def test_a_key_of_two_sets_is_refused(two_sets: Path, tmp_path: Path, shards: Path) -> None:
    words = [f"scale.runs={tmp_path}", f"data.sets.1.shards={shards}"]
    with pytest.raises(UserError, match=r"data\.sets: key 'drawn-0-\d+' is in 'drawn' and in 'more'"):
        plan.make(config.load([str(two_sets)], words))
