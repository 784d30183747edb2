"""Settings of a scoring run: the model's own, changed where that makes sense."""

from __future__ import annotations

from collections.abc import Sequence

from ageray import bundle, config
from ageray.errors import UserError
from ageray.experiment import Experiment, Scale, Storage


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
