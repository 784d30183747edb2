"""What a training step and a scored batch launch and send: neither waits for the device.

On the `meta` device tensors have no values, so that whatever would wait for a value fails. One
operation is about one kernel, but on a GPU the optimiser takes one for all parameters.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ageray import bundle, config
from ageray.faces.canvases import canvas_side, to_tensors
from ageray.models.inference import predict
from ageray.predictor import Predictor
from ageray.train import loop
from ageray.train.state import new_state
from tests.faces.test_augment_transfers import META, Census

FACES = 8


class Launches(TorchDispatchMode):
    """Counts operations on the device, and what a CUDA graph cannot hold: tensors of the CPU in
    them (`sent`), and what waits for a value (`waits`). Casts to bf16 are counted on any device."""

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.casts = 0, 0
        self.sent, self.waits = Counter[str](), Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        devices = {each.device.type for each in [*inputs, *tree_leaves(result)] if isinstance(each, Tensor)}
        name = func.overloadpacket.__name__
        if name in ("to", "_to_copy") and result.dtype == torch.bfloat16 != inputs[0].dtype:
            self.casts += 1
        if "meta" in devices and "cpu" in devices:
            self.sent[name] += 1
        elif "meta" in devices and not func.is_view:
            self.operations += 1
        waiting = ("_linalg_check_errors", "_local_scalar_dense", "nonzero", "masked_select")
        if "meta" in devices and name in waiting:
            self.waits[name] += 1
        return result


@pytest.fixture
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


CHANGED = ["train.sizes=[]"]
"""Every random change is part of the step, of a batch of any size."""
for name in ("blur", "downscale", "jpeg", "noise"):
    CHANGED.append(f"train.augment.{name}=0.6")


# The columns, the random map, and the random numbers of `photometric` (2).
@pytest.mark.parametrize(
    ("recipe", "words", "operations", "copies"),
    [("baseline", [], 485, 9), ("default", CHANGED, 524, 9)],
)
@pytest.mark.usefixtures("no_autocast")
def test_a_training_step_waits_for_nothing(
    recipe: str, words: list[str], operations: int, copies: int
) -> None:
    experiment = config.load(
        [f"recipe:{recipe}"],
        ["model.weights=none", f"train.batch_size={FACES}", "train.precision=float32", *words],
    )
    state = new_state(experiment, META)
    state.start_stage(0, 10)
    for _ in range(2):  # the first step makes constants and the optimiser's state
        with Census() as census:
            loop._train_step(state, columns(canvas_side(experiment.align)))
    assert sum(census.copies.values()) <= copies, census.copies
    assert census.operations <= operations, census.operations


@pytest.mark.usefixtures("no_autocast")
def test_a_scored_batch_waits_for_nothing_and_is_copied_once() -> None:
    loaded = bundle.load("zoo:default")
    network = loaded.network().to(META)
    experiment = loaded.experiment.model_copy(deep=True)
    arrays = columns(canvas_side(experiment.align))
    for _ in range(2):  # the first batch makes the constants
        with torch.inference_mode(), Census() as census:
            batch = to_tensors({name: arrays[name] for name in ("canvas", "points", "box")}, META)
            prediction = predict(network, batch, experiment, autocast=False)
    assert len(prediction.posterior) == FACES
    assert sum(census.copies.values()) == 3, census.copies
    assert census.operations <= 116, census.operations


@pytest.mark.usefixtures("no_autocast")
@pytest.mark.parametrize(("model", "operations"), [("default", 296), ("accurate", 552)])
def test_what_is_recorded_as_a_graph_sends_nothing_and_waits_for_nothing(
    model: str, operations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From canvases on the device to the columns that leave it, measures and quantiles included. To
    read the age at a level (`model.decode.levels`) takes 21 of the operations."""
    made, tensor = [], torch.tensor

    def on_the_way(*values: Any, **options: Any) -> Tensor:
        """`torch.tensor`, whose copy to the device no dispatch mode sees."""
        if str(options.get("device", "cpu")) != "cpu":
            made.append(values)
        return tensor(*values, **options)

    loaded = bundle.load(f"zoo:{model}")
    predictor = Predictor(loaded, device="meta", precision="float32")
    arrays = columns(canvas_side(loaded.experiment.align))
    batch = {name: torch.from_numpy(arrays[name]).to(META) for name in ("canvas", "points", "box")}
    monkeypatch.setattr(torch, "tensor", on_the_way)
    with torch.inference_mode():
        predictor._flat(batch)  # makes the constants
        made.clear()
        with Launches() as launches:
            rows = predictor._flat(batch)
    assert len(rows) == FACES
    assert (launches.sent, launches.waits, made) == (Counter(), Counter(), [])
    assert launches.operations <= operations


@pytest.mark.parametrize(("model", "passes"), [("default", 1), ("accurate", 3)])
def test_a_scored_batch_casts_faces_not_weights(model: str, passes: int) -> None:
    """With weights in float32 autocast has 59 casts a pass."""
    loaded = bundle.load(f"zoo:{model}")
    predictor = Predictor(loaded, "cpu", 1, "bf16")
    arrays = columns(canvas_side(loaded.experiment.align))
    points = np.random.default_rng(0).uniform(50, 200, (1, 5, 2)).astype(np.float32)
    with Launches() as launches:
        predictor.predict(arrays["canvas"][:1], points, arrays["box"][:1])
    assert launches.casts == passes
