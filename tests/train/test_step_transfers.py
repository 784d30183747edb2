"""What a training step and a scored batch launch and send: neither waits for the device.

On the `meta` device tensors have no values, so that whatever would wait for a value fails. One
operation is about one kernel, but on a GPU the optimiser takes one for all parameters.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
import torch

from ageray import bundle, config
from ageray.faces.canvases import canvas_side, to_tensors
from ageray.models.inference import predict
from ageray.train import loop
from ageray.train.state import new_state
from tests.faces.test_augment_transfers import META, Census

FACES = 8


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The `meta` device has none."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())


def columns(side: int) -> dict[str, Any]:
    return {
        "canvas": np.zeros((FACES, side, side, 3), np.uint8),
        "points": np.zeros((FACES, 5, 2), np.float32),
        "box": np.zeros((FACES, 4), np.float32),
        "age": np.arange(FACES, dtype=np.float32),
        "gender": np.array([0, 1] * (FACES // 2)),
        "slot": np.arange(FACES),
    }


# The six columns, the random map, the random numbers of colours (2), and what the recipe adds:
# Kornia's blur and JPEG, a loss's bins.
@pytest.mark.parametrize(
    ("recipe", "operations", "copies"),
    [("baseline", 440, 10), ("default", 543, 11)],
)
def test_a_training_step_waits_for_nothing(recipe: str, operations: int, copies: int) -> None:
    experiment = config.load(
        [f"recipe:{recipe}"],
        ["model.weights=none", f"train.batch_size={FACES}", "train.precision=float32"],
    )
    state = new_state(experiment, META)
    state.start_stage(0, 10)
    state.step = 1
    with Census() as census:
        loop._train_step(state, columns(canvas_side(experiment.align)))
    assert sum(census.copies.values()) <= copies, census.copies
    assert census.operations <= operations


def test_a_scored_batch_waits_for_nothing_and_is_copied_once() -> None:
    loaded = bundle.load("zoo:default")
    network = loaded.network().to(META)
    experiment = loaded.experiment.model_copy(deep=True)
    arrays = columns(canvas_side(experiment.align))
    with torch.inference_mode(), Census() as census:
        batch = to_tensors({name: arrays[name] for name in ("canvas", "points", "box")}, META)
        prediction = predict(network, batch, experiment, autocast=False)
    assert len(prediction.posterior) == FACES
    assert sum(census.copies.values()) <= 4, census.copies
    assert census.operations <= 134, census.operations
