"""The way back from the trained weights towards those it started from, by the amount that
validation chooses (WiSE-FT; Wortsman et al., CVPR 2022).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ageray.errors import UserError
from ageray.experiment import Experiment
from ageray.models.average import State as Weights
from ageray.models.average import interpolate
from ageray.models.build import build
from ageray.train import epochs
from ageray.train.state import State
from ageray.train.validation import Validated


def check(experiment: Experiment) -> None:
    """Raises UserError where there is nothing to go back to, or no validation that could choose."""
    if not experiment.train.wise_ft:
        return
    if experiment.model.weights == "none":
        raise UserError(
            "train.wise_ft: goes back towards the weights of model.weights, which is none; "
            "name a file there, or leave wise_ft empty"
        )
    if experiment.model.decode.method == "gallery":
        raise UserError("train.wise_ft: a gallery fits one network's weights; leave wise_ft empty")


def start_weights(experiment: Experiment) -> Weights:
    """The weights that a run of this experiment starts from."""
    return build(experiment.model, seed=experiment.train.seed).state_dict()


def choose(state: State, start: Weights, validation: Callable[[], Validated]) -> dict[str, Any]:
    """Gives the evaluated network of `state` the best weights between `start` and its own.

    Every share of `train.wise_ft`, and 1, the trained weights, is validated with `validation`;
    the best by `train.select` stays, the larger share where two are equal. Returns `share` and
    `figures`, each share's validation figure in years, for the card. Without validation faces
    the trained weights stay.
    """
    network, select = state.eval_network, state.config.train.select
    end = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    first = {name: tensor.to(end[name].device) for name, tensor in start.items()}
    figures: dict[float, float] = {}
    for share in sorted({*state.config.train.wise_ft, 1.0}, reverse=True):
        network.load_state_dict(interpolate(first, end, share))
        figures[share] = epochs.figure(validation(), select)
    best = 1.0
    for share, years in figures.items():
        if years < figures[best]:
            best = share
    network.load_state_dict(interpolate(first, end, best))
    return {"share": best, "figures": {str(share): years for share, years in figures.items()}}
