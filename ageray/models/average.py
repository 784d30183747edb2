"""Averages of weights: of the weights before and after a training, and of several trainings.

WiSE-FT (Wortsman et al., CVPR 2022, Eq. 1) and model soups (Wortsman et al., ICML 2022). Integers,
such as a count of batches, are not averaged: the last state's are copied.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ageray.errors import UserError

State = dict[str, Tensor]


def interpolate(start: State, end: State, share: float) -> State:
    """The weights at `share` of the way from `start` to `end`: start + share (end - start).

    Raises UserError if the two states are not of one network.
    """
    _check_alike([start, end])
    result: State = {}
    for name, last in end.items():
        if last.is_floating_point():
            first = start[name].to(last)
            result[name] = first + share * (last - first)
        else:
            result[name] = last.clone()
    return result


def soup(states: Sequence[State], weights: Sequence[float] | None = None) -> State:
    """The mean of the states, weighted by `weights`, which need not add up to 1.

    Raises UserError if the states are not of one network.
    """
    _check_alike(states)
    shares = [1.0] * len(states) if weights is None else list(weights)
    total = sum(shares)
    result: State = {}
    for name, last in states[-1].items():
        if last.is_floating_point():
            mean = sum(
                share / total * state[name].double() for share, state in zip(shares, states, strict=True)
            )
            assert isinstance(mean, Tensor)
            result[name] = mean.to(last.dtype)
        else:
            result[name] = last.clone()
    return result


def _check_alike(states: Sequence[State]) -> None:
    shapes = [{name: tensor.shape for name, tensor in state.items()} for state in states]
    for place, other in enumerate(shapes[1:], 2):
        if other != shapes[0]:
            names = sorted(set(shapes[0].items()) ^ set(other.items()))
            raise UserError(
                f"weights 1 and {place} are of different networks ({names[0][0]} differs); "
                "average models of one configuration"
            )
