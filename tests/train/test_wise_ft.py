"""The way back towards the start: which share wins, what it leaves behind, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ageray.errors import UserError
from ageray.experiment import Experiment
from ageray.train import wise_ft
from ageray.train.plan import check_model
from ageray.train.state import State, new_state
from ageray.train.validation import Validated

SETTINGS = {
    "model": {"name": "baseline", "backbone": "mobilenet_v1", "hidden": 4, "ages": [0, 50]},
    "loss": {"cross_entropy": {}},
    "align": {"size": 32},
}
KEY = "head.bias"


def state_of(shares: list[float], select: str = "mae") -> State:
    """A run whose first bias of the classifier went from 0 to 10."""
    experiment = Experiment.model_validate(SETTINGS | {"train": {"wise_ft": shares, "select": select}})
    state = new_state(experiment, torch.device("cpu"))
    with torch.no_grad():
        state.network.get_parameter(KEY)[0] = 10.0
    return state


def validation(state: State, best: float) -> Validated:
    """One face of 10 years and nine of 40. The error of the young one is how far the bias lies
    from `best`, that of the others grows with the bias a little."""
    bias = float(state.eval_network.get_parameter(KEY)[0].detach())
    true = np.array([10.0] + [40.0] * 9, np.float32)
    errors = np.array([abs(bias - best)] + [0.2 * bias] * 9, np.float32)
    return Validated(true, true + errors, np.zeros(10, np.int64))


@pytest.mark.parametrize(("select", "share"), [("mae", 0.25), ("decades", 0.75)])
def test_the_share_that_validates_best_is_kept(select: str, share: float) -> None:
    state = state_of([0.25, 0.5, 0.75], select)
    start = wise_ft.start_weights(state.config)
    choice = wise_ft.choose(state, start, lambda: validation(state, best=7.5))
    assert choice["share"] == share
    assert float(state.eval_network.get_parameter(KEY)[0].detach()) == pytest.approx(10 * share)
    assert set(choice["figures"]) == {"0.25", "0.5", "0.75", "1.0"}
    kernel = "backbone.dw.3.weight"
    assert torch.equal(state.eval_network.get_parameter(kernel), start[kernel])  # did not move, does not move


def test_the_trained_weights_stay_where_they_are_best() -> None:
    state = state_of([0.5], "decades")
    choice = wise_ft.choose(state, wise_ft.start_weights(state.config), lambda: validation(state, best=100.0))
    assert choice["share"] == 1.0
    assert float(state.eval_network.get_parameter(KEY)[0].detach()) == 10.0


def test_without_validation_faces_the_trained_weights_stay() -> None:
    state = state_of([0.5])
    empty = Validated(np.zeros(0, np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    assert wise_ft.choose(state, wise_ft.start_weights(state.config), lambda: empty)["share"] == 1.0


def test_nothing_to_go_back_to_is_refused() -> None:
    experiment = Experiment.model_validate(SETTINGS | {"train": {"wise_ft": [0.5]}})
    with pytest.raises(UserError, match="^train.wise_ft: goes back towards the weights of model.weights"):
        check_model(experiment)
