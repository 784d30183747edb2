"""Interpolates between the start weights and the trained weights of a run; validation chooses how
far (WiSE-FT; Wortsman et al., CVPR 2022).
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
    """Raises UserError if the run starts from random weights, or predicts from a gallery."""
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
    """Loads the best weights between `start` and the trained ones into the evaluated network.

    A share of 0 is `start`, a share of 1 the trained weights. `validation` runs once for each share
    of `train.wise_ft` and for 1. The best share by `train.select` wins; of two equal shares the
    larger one wins. Without validation faces the trained weights stay.

    Returns `share` and `figures`, the validation figure of each share in years, for the card.
    """
    network, select = state.eval_network, state.config.train.select
    end = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    first = {name: tensor.to(end[name].device) for name, tensor in start.items()}
    figures: dict[float, float] = {}
    for share in sorted({*state.config.train.wise_ft, 1.0}, reverse=True):
        network.load_state_dict(interpolate(first, end, share))
        figures[share] = epochs.figure(validation(), select)
    best, report = 1.0, {}
    for share, years in figures.items():
        report[str(share)] = years
        if years < figures[best]:
            best = share
    network.load_state_dict(interpolate(first, end, best))
    return {"share": best, "figures": report}
