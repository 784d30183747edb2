"""Every shipped recipe: it loads with every set and machine, builds its network and its loss, and
names files that exist.
"""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest
import torch

from ageray import config
from ageray.losses.criterion import Criterion
from ageray.models.build import build
from ageray.models.decode import bins

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted(file for file in (ROOT / "configs").glob("*.yaml") if "\nmodel:" in file.read_text())
SETS = sorted((ROOT / "configs" / "data").glob("*.yaml"))
MACHINES = sorted((ROOT / "configs" / "scale").glob("*.yaml"))


def test_there_are_recipes_sets_and_machines() -> None:
    assert {"baseline", "cluster_cnn", "default"} <= {file.stem for file in RECIPES}
    assert SETS
    assert MACHINES


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda file: file.stem)
def test_a_recipe_builds_its_network_and_its_loss(recipe: Path) -> None:
    experiment = config.load([str(recipe)], ["model.weights=none"])
    network = build(experiment.model, seed=0).train()
    criterion = Criterion(experiment.loss, network.outputs, experiment.model.name)
    side = experiment.align.size
    batch = {"face": torch.rand(2, 3, side, side) * 255, "points": torch.rand(2, 5, 2) * side}
    fields = {
        "age": torch.tensor([4.0, 61.0]),
        "gender": torch.tensor([0, 1]),
        "bins": bins(experiment.model),
    }
    fields["teacher"] = torch.full((2, len(fields["bins"])), 1 / len(fields["bins"]))
    with torch.no_grad():
        total, terms = criterion({**network(batch), **fields})
    assert bool(torch.isfinite(total))
    assert terms


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda file: file.stem)
def test_a_recipe_names_weights_that_its_model_can_have(recipe: Path) -> None:
    model = config.load([str(recipe)]).model
    assert model.weights == "none" or (
        model.weights == "imagenet" and getattr(model, "backbone", "resnet18") != "bvlc_googlenet"
    )


@pytest.mark.parametrize(
    ("recipe", "data", "scale"), product(RECIPES, SETS, MACHINES), ids=lambda file: file.stem
)
def test_every_recipe_goes_with_every_set_and_machine(recipe: Path, data: Path, scale: Path) -> None:
    experiment = config.load([str(recipe), str(data), str(scale)])
    assert config.loads(config.dump(experiment), "dumped") == experiment
    assert experiment.data.shards or experiment.data.sets
    assert experiment.data.name != "faces"


@pytest.mark.parametrize("file", [*RECIPES, *SETS, *MACHINES], ids=lambda file: file.stem)
def test_the_files_that_a_recipe_mentions_exist(file: Path) -> None:
    text = file.read_text()
    for name in re.findall(r"configs/[\w/]+\.yaml", text):
        assert (ROOT / name).is_file(), name
    schema = re.search(r"\$schema=(\S+)", text)
    assert schema is not None
    assert (file.parent / schema[1]).resolve() == ROOT / "configs" / "experiment.schema.json"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda file: file.stem)
def test_a_recipe_opens_with_its_source_and_its_command(recipe: Path) -> None:
    head = recipe.read_text().split("\nmodel:")[0]
    assert re.search(r"\b(19|20)\d\d\b", head)
    assert f"ageray train configs/{recipe.name} configs/data/" in head
