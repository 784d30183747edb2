"""Every key of `configs/` with its default, its unit and the paper's value.

An experiment has eight top-level keys. They are spread over three files: *what* (`model`, `loss`,
`align`, `train`), *on what* (`data`, `protocol`) and *with what* (`scale`, `storage`). A ninth,
`tune`, describes a search over experiments. `ageray.config` reads files and overrides; this package
imports neither YAML nor torch nor Ray.
"""

from __future__ import annotations

from pydantic import Field

from ageray.experiment import loss, model
from ageray.experiment.align import Align
from ageray.experiment.data import Data, Detect, FaceSet, Filters
from ageray.experiment.loss import Loss
from ageray.experiment.model import Baseline, Model
from ageray.experiment.protocol import Protocol
from ageray.experiment.scale import Scale
from ageray.experiment.storage import Storage
from ageray.experiment.strict import Strict
from ageray.experiment.train import Augment, Optimizer, Schedule, Stage, Train
from ageray.experiment.tune import Tune

__all__ = [
    "Align",
    "Augment",
    "Data",
    "Detect",
    "Experiment",
    "FaceSet",
    "Filters",
    "Loss",
    "Model",
    "Optimizer",
    "Protocol",
    "Scale",
    "Schedule",
    "Stage",
    "Storage",
    "Train",
    "Tune",
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
    """Which faces train, validate and test."""
    scale: Scale = Scale()
    """The machine."""
    storage: Storage = Storage()
    """Where `s3://` is."""
    tune: Tune | None = Field(default=None, exclude=True)
    """What `ageray tune` searches. It is not part of an experiment: no dump, bundle or digest has
    it."""
