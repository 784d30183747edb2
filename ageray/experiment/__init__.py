"""The whole vocabulary of `configs/`: every key, its default, its unit and the paper's value.

An experiment has seven top-level keys. Three files share them out: *what* (`model`, `loss`, `align`, `train`), *on what* (`data`,
`protocol`) and *with what* (`scale`). Files and overrides are read by `ageray.config`; this package knows neither YAML nor torch nor Ray.
"""

from __future__ import annotations

from ageray.experiment import loss, model
from ageray.experiment.align import Align
from ageray.experiment.data import Data, Detect, Filters
from ageray.experiment.loss import Loss
from ageray.experiment.model import Baseline, Model
from ageray.experiment.protocol import Protocol
from ageray.experiment.scale import Scale
from ageray.experiment.strict import Strict
from ageray.experiment.train import Augment, Optimizer, Schedule, Stage, Train

__all__ = [
    "Align",
    "Augment",
    "Data",
    "Detect",
    "Experiment",
    "Filters",
    "Loss",
    "Model",
    "Optimizer",
    "Protocol",
    "Scale",
    "Schedule",
    "Stage",
    "Train",
    "loss",
    "model",
]


class Experiment(Strict):
    """One validated experiment; the resolved form is the first file of a run folder."""

    model: Model = Baseline()
    """Which network."""
    loss: Loss = Loss()
    """Which loss terms."""
    align: Align = Align()
    """From photo to network input."""
    train: Train = Train()
    """Optimisation."""
    data: Data = Data()
    """Which faces."""
    protocol: Protocol = Protocol()
    """Which part does what."""
    scale: Scale = Scale()
    """With what machine."""
