"""Golden curves: every recipe, scaled down, gives on drawn faces the losses that were recorded."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from ageray import config
from ageray.experiment import Align, Experiment
from ageray.faces.canvases import face_canvases
from ageray.synthetic import faces
from ageray.train.loop import Columns, init_network, train_one_epoch
from ageray.train.state import new_state

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).parents[1] / "golden"
STEPS, BATCH = 20, 8
COMMON = (
    "model.weights=none",
    "align.size=48",
    "train.precision=float32",
    f"train.batch_size={BATCH}",
    "train.seed=0",
)


@dataclass(frozen=True)
class Scaled:
    """Overrides of a recipe, and what its learning rates are divided by.

    At the recipes' own rates training on so small a batch is chaotic: CPUs that round differently
    would drift apart within 20 steps.
    """

    calmer: float
    words: list[str] = field(default_factory=list)


RECIPES = {
    "default": Scaled(3),
    "fast": Scaled(3),
    "accurate": Scaled(3),
    "two_tails": Scaled(3),
    "googlenet": Scaled(8),
    "baseline": Scaled(300),
    "cluster_cnn": Scaled(100, ["model.init_faces=16"]),
    "frozen": Scaled(1),
    "finetune": Scaled(3),
    "distill": Scaled(3, ["train.teacher=start", "train.teacher_faces=augmented", "train.sizes=[48,56]"]),
    "dhaa": Scaled(50, ["align.size=64", "model.width=0.25"]),
    "neighborhood": Scaled(3, ["model.width=0.25"]),
    "deep_embedding": Scaled(60, ["model.backbone=resnet18"]),
    "siamese": Scaled(30, ["model.backbone=resnet18"]),
}


def scaled_down(recipe: str) -> Experiment:
    file, scaled = str(ROOT / "configs" / f"{recipe}.yaml"), RECIPES[recipe]
    optimizer = config.load([file]).train.stages[0].optimizer
    rates = {"lr": optimizer.lr, "body_lr": optimizer.body_lr}
    words = [
        f"train.stages.0.optimizer.{name}={rate / scaled.calmer!r}"
        for name, rate in rates.items()
        if rate is not None
    ]
    return config.load([file], [*COMMON, *scaled.words, *words])


def drawn_batches(count: int, align: Align) -> list[Columns]:
    """Drawn faces, each of another person, of either gender, in batches."""
    drawn = list(faces.faces(count, 0, size=96))
    pieces = [face_canvases(face.jpeg(), face.points[None], face.box[None], align) for face in drawn]
    columns: Columns = {
        name: np.concatenate([getattr(piece, name) for piece in pieces])
        for name in ("pixels", "points", "box")
    }
    columns["canvas"] = columns.pop("pixels")
    columns["age"] = np.array([face.age for face in drawn], np.float32)
    columns["gender"] = np.arange(count) // 3 % 2
    return [
        {name: values[first : first + BATCH] for name, values in columns.items()}
        for first in range(0, count, BATCH)
    ]


def curve(recipe: str) -> list[float]:
    settings = scaled_down(recipe)
    state = new_state(settings, torch.device("cpu"))
    batches = drawn_batches(4 * BATCH, settings.align)
    init_network(state, batches)
    state.start_stage(0, STEPS)
    return [train_one_epoch(state, [batches[step % len(batches)]]).loss for step in range(STEPS)]


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_golden_losses_of_the_first_twenty_steps(recipe: str) -> None:
    """A recipe scaled down gives the losses that were recorded, on any CPU.

    Any change of a number in between fails here. If the change is meant, write the curves anew and
    say so in the change log: AGERAY_WRITE_GOLDEN=1 python -m pytest tests/train/test_golden.py
    """
    losses, file = curve(recipe), GOLDEN / f"{recipe}.json"
    made_by = {"overrides": [*COMMON, *RECIPES[recipe].words], "rates_divided_by": RECIPES[recipe].calmer}
    if os.environ.get("AGERAY_WRITE_GOLDEN"):
        file.write_text(
            json.dumps({**made_by, "losses": [round(loss, 6) for loss in losses]}, indent=1) + "\n"
        )
        pytest.skip(f"wrote {file.name}")
    golden = json.loads(file.read_text())
    assert {name: golden[name] for name in made_by} == made_by
    assert losses == pytest.approx(golden["losses"], rel=2e-3)


def test_every_recipe_has_a_golden_curve() -> None:
    assert {file.stem for file in (ROOT / "configs").glob("*.yaml") if "\nmodel:" in file.read_text()} == set(
        RECIPES
    )
