"""Settings of an evaluation: the model's own, on another set and machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ageray import bundle, config
from ageray.errors import UserError
from ageray.experiment import Experiment, Scale

_OF_THE_MODEL = ("model", "loss", "align", "train")


def evaluation_settings(model: str, words: Sequence[str]) -> Experiment:
    """The model's own experiment on the set and the machine of `words`: files and key=value.

    Raises UserError for settings of what the model fixed in training.
    """
    own = bundle.load(model).experiment
    paths, overrides = config.parse_arguments(words)
    # the machine is this one, not the one that trained
    experiment = config.load(paths, overrides, base=own.model_copy(update={"scale": Scale()}))
    for section in _OF_THE_MODEL:
        if _fixed(experiment, section) != _fixed(own, section):
            reason = "belongs to the model and was fixed when it was trained"
            remedy = "give only data, protocol, scale, model.decode and train.calibrate"
            raise UserError(f"{section}: {reason}; {remedy}")
    return experiment


def _fixed(experiment: Experiment, section: str) -> dict[str, Any]:
    """The settings of a section that an evaluation cannot change."""
    content: dict[str, Any] = getattr(experiment, section).model_dump(mode="json")
    content.pop("decode", None)
    content.pop("calibrate", None)
    return content
