"""Every shipped recipe: it loads with every set and machine, builds its network and its loss, and
names files that exist.
"""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from ageray import config
from ageray.losses.criterion import Criterion
from ageray.models.build import build, load_start
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
    if model.weights.startswith("zoo:"):
        load_start(build(model.model_copy(update={"weights": "none"})), model.weights)
        return
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


# --- the five papers ------------------------------------------------------------------------------

_SGD_OF_DHAA = {
    "model.weights": "imagenet",
    "model.decode.method": "expectation",
    "model.decode.flip": True,
    "model.ages": [0, 100],
    "loss.cross_entropy.weight": 1.0,
    "align.mode": "eyes_mouth",
    "align.size": 256,
    "train.precision": "float32",
    "train.augment.flip": 0.5,
    "train.augment.brightness": 0,
    "train.augment.contrast": 0,
    "train.augment.saturation": 0,
    "train.stages.0.optimizer.name": "sgd",
    "train.stages.0.optimizer.nesterov": True,
    "train.stages.0.optimizer.momentum": 0.9,
    "train.stages.0.optimizer.lr": 0.01,
    "train.stages.0.optimizer.weight_decay": 5e-4,
    "train.stages.0.schedule.name": "step",
    "train.stages.0.schedule.warmup": 0,
}
_NO_AUGMENTATION = {
    f"train.augment.{name}": 0
    for name in ("flip", "rotation", "scale", "translation", "brightness", "contrast", "saturation")
}
PAPERS: dict[str, dict[str, Any]] = {
    "dhaa": {
        **_SGD_OF_DHAA,
        "model.branches": ["global", "local", "global_local"],
        "model.pooling": "arp",
        "model.fusion": "lstm",
        "model.features": 128,
        "model.width": 1,
        "loss.auxiliary": 1,
    },
    "baseline": {**_SGD_OF_DHAA, "model.backbone": "resnet18"},
    "cluster_cnn": {
        "model.weights": "imagenet",
        "model.backbone": "bvlc_googlenet",
        "model.clusters": 5,
        "model.momentum": 0.999,
        "model.init_faces": 5000,
        "model.dropout": 0.4,
        "model.auxiliary": True,
        "loss.auxiliary": 0.3,
        "align.mode": "eyes",
        "align.size": 128,
        "train.batch_size": 128,
        "train.precision": "float32",
        "train.stages.0.epochs": 5,
        "train.stages.0.optimizer.name": "adam",
        "train.stages.0.optimizer.lr": 1e-4,
        "train.stages.0.schedule.name": "constant",
        "train.stages.0.schedule.warmup": 0,
        **{name: value for name, value in _NO_AUGMENTATION.items() if name != "train.augment.scale"},
    },
    "deep_embedding": {
        "model.weights": "imagenet",
        "model.backbone": "vgg16",
        "model.embedding": 0,
        "model.ages": [0, 100],
        "model.decode.method": "expectation",
        "model.decode.flip": False,
        "loss.cross_entropy.weight": 0.4,
        "loss.cross_entropy.reduction": "sum",
        "loss.triplet.weight": 1,
        "loss.triplet.margin": 0.5,
        "loss.triplet.reduction": "sum",
        "align.mode": "box",
        "align.size": 224,
        "train.batch_size": 64,
        "train.precision": "float32",
        "train.stages.0.steps": 297000,
        "train.stages.0.optimizer.name": "sgd",
        "train.stages.0.optimizer.lr": 1e-3,
        "train.stages.0.optimizer.nesterov": False,
        "train.stages.0.optimizer.weight_decay": 5e-4,
        "train.stages.0.schedule.warmup": 0,
        **_NO_AUGMENTATION,
    },
    "neighborhood": {
        "model.weights": "none",
        "model.depth": 34,
        "model.ages": [0, 99],
        "model.dropout": 0.2,
        "model.decode.method": "expectation",
        "model.decode.flip": False,
        "loss.neighborhood.sigma": 5,
        "loss.neighborhood.normalize": False,
        "loss.neighborhood.reduction": "sum",
        "align.mode": "similarity",
        "align.size": 224,
        "train.precision": "float32",
        "train.balance": "counts",
        "train.stages.0.steps": 200000,
        "train.stages.0.optimizer.name": "adam",
        "train.stages.0.optimizer.momentum": 0.9,
        "train.stages.0.optimizer.lr": 0.1,
        "train.stages.0.optimizer.weight_decay": 5e-4,
        "train.stages.0.schedule.milestones": [0.25, 0.5, 0.75],
        "train.stages.0.schedule.warmup": 0,
    },
    "siamese": {
        "model.weights": "imagenet",
        "model.backbone": "inception_v3",
        "model.age_features": 70,
        "model.gender_features": 10,
        "model.dropout": 0.5,
        "model.decode.method": "gallery",
        "model.decode.flip": False,
        "model.decode.gallery.neighbours": 20,
        "model.decode.gallery.exclude_subject": False,
        "loss.contrastive.margin": 4,
        "loss.contrastive.q": 100,
        "loss.contrastive.inclusive": False,
        "loss.gender_contrastive.q": 100,
        "align.mode": "box",
        "align.size": 227,
        "train.batch_size": 128,
        "train.shuffle_all": True,
        "train.precision": "float32",
        "train.stages.0.epochs": 275,
        "train.stages.0.optimizer.name": "adadelta",
        **_NO_AUGMENTATION,
    },
}
"""What the papers say, as settings. What a paper does not say is not here."""


def _listed(recipe: str, heading: str) -> list[str]:
    """The settings that a block of the recipe's header lists."""
    head = (ROOT / "configs" / f"{recipe}.yaml").read_text().split("\nmodel:")[0]
    block = head.split(f"# {heading}\n")[1]
    names = []
    for line in block.splitlines():
        entry = re.match(r"#   ([a-z_]+\.[a-z_.0-9]+):", line)
        if entry is not None:
            names.append(entry[1])
        elif not line.startswith("#     "):
            break
    return names


@pytest.mark.parametrize("recipe", list(PAPERS))
def test_a_recipe_lists_every_departure_from_its_paper(recipe: str) -> None:
    """The list in the header is what differs: no more, no less."""
    settings = config.load([str(ROOT / "configs" / f"{recipe}.yaml")]).model_dump(mode="json")
    differing = []
    for path, expected in PAPERS[recipe].items():
        value: Any = settings
        for key in path.split("."):
            value = value[int(key)] if isinstance(value, list) else value[key]
        if value != expected:
            differing.append(path)
    assert sorted(_listed(recipe, "Departs from the paper")) == sorted(differing)


@pytest.mark.parametrize("recipe", list(PAPERS))
def test_a_recipe_lists_what_it_had_to_choose(recipe: str) -> None:
    settings = config.load([str(ROOT / "configs" / f"{recipe}.yaml")]).model_dump(mode="json")
    chosen = _listed(recipe, "Not in the paper")
    assert len(chosen) >= 2
    for path in chosen:
        assert path not in PAPERS[recipe], path
        value: Any = settings
        for key in path.split("."):
            value = value[int(key)] if isinstance(value, list) else value[key]


def test_every_point_of_the_papers_is_the_same_or_stated() -> None:
    """docs/papers.md has one table a paper and one for all of them."""
    text = (ROOT / "docs" / "papers.md").read_text()
    audit = text.split("## What is the paper's, and what is not")[1].split("\n## ")[0]
    tables = audit.split("\n### ")[1:]
    assert len(tables) == 6
    for table in tables:
        points = [line for line in table.splitlines() if line.startswith("| ")][1:]
        assert len(points) >= 7
        for point in points:
            assert re.match(r"\| [^|]+ \| (same|stated)\b", point), point


def test_the_baseline_differs_from_dhaa_in_its_network_alone() -> None:
    both = [config.load([str(ROOT / "configs" / f"{name}.yaml")]) for name in ("baseline", "dhaa")]
    for section in ("loss", "align", "train"):
        assert getattr(both[0], section) == getattr(both[1], section)
