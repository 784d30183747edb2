"""Settings of a command that uses a finished model: its own, changed where that makes sense."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ageray import bundle, config
from ageray.errors import UserError
from ageray.experiment import Experiment, Scale, Storage

_OF_THE_MODEL = ("model", "loss", "align", "train")


def scoring_settings(model: str, words: Sequence[str]) -> Experiment:
    """The model's own experiment with the default scale, changed by `words`: files and key=value.

    Raises UserError for settings of anything but `scale`, `storage` and `data.detect`.
    """
    own = bundle.load(model).experiment.model_copy(update={"scale": Scale(), "storage": Storage()})
    experiment = config.load(*config.parse_arguments(words), base=own)
    data = own.data.model_copy(update={"detect": experiment.data.detect})
    allowed = {"scale": experiment.scale, "storage": experiment.storage, "data": data}
    if experiment != own.model_copy(update=allowed):
        rule = "only scale.*, storage.* and data.detect.* can be set here; the model fixes the rest"
        raise UserError(f"{' '.join(words)}: {rule}")
    return experiment


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
