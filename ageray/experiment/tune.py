"""`tune`: what `ageray tune` searches, and for how long. No other command reads it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ageray.experiment.strict import Count, Positive, Strict


class Range(Strict):
    """What all searched settings share."""

    optional: bool = False
    """Leave this setting out, with a note, where the experiment does not use it (a loss term that
    is off, another model's setting) instead of refusing the search. So one file serves several
    recipes."""


class Interval(Range):
    """Between two ends, both included."""

    low: float
    """Least value."""
    high: float
    """Greatest value."""

    @model_validator(mode="after")
    def _ascends(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low must be below high; got {self.low:g} and {self.high:g}")
        return self


class Uniform(Interval):
    """A number, evenly spread."""

    kind: Literal["uniform"]
    """Selects this kind."""


class LogUniform(Interval):
    """A number above 0 whose logarithm is evenly spread: for rates, weights and widths."""

    kind: Literal["loguniform"]
    """Selects this kind."""
    low: Positive
    """Least value."""


class Int(Interval):
    """A whole number."""

    kind: Literal["int"]
    """Selects this kind."""
    low: int
    """Least value."""
    high: int
    """Greatest value."""
    log: bool = False
    """Spread the logarithm evenly; `low` is then at least 1."""

    @model_validator(mode="after")
    def _has_a_logarithm(self) -> Self:
        if self.log and self.low < 1:
            raise ValueError(f"low must be at least 1 with log: true; got {self.low}")
        return self


class Choice(Range):
    """One of several values, without an order."""

    kind: Literal["choice"]
    """Selects this kind."""
    values: Annotated[tuple[bool | int | float | str, ...], Field(min_length=2)]
    """The values."""

    @model_validator(mode="after")
    def _differ(self) -> Self:
        if len({repr(value) for value in self.values}) < len(self.values):
            raise ValueError(f"values must differ; got {list(self.values)}")
        return self


Dimension = Annotated[Uniform | LogUniform | Int | Choice, Field(discriminator="kind")]


class Asha(Strict):
    """Asynchronous successive halving (Li et al., MLSys 2020): at each rung a trial goes on only if
    it is among the best of those that got there.
    """

    enabled: bool = True
    """Whether to stop trials early; false trains all to the end."""
    grace_epochs: Count = 2
    """Epochs that every trial gets: the first rung."""
    reduction: Annotated[float, Field(gt=1)] = 3.0
    """eta: the share 1 / eta goes on; rungs are at grace_epochs x eta, x eta^2, ... (paper: 4)."""


class Finalists(Strict):
    """The best trials and the recipe as it stands, trained again with several seeds and compared on
    the test faces.
    """

    count: Count = 3
    """How many of the best trials, besides the recipe's own settings."""
    seeds: Annotated[int, Field(ge=2)] = 3
    """Trainings of each, with train.seed + 1, + 2, .... They show how much of a difference comes
    from the seed.
    """


class Tune(Strict):
    """A search: the settings with their ranges, the budget, and the test of the best trials against
    chance."""

    space: dict[str, Dimension]
    """Path of a setting (`loss.neighborhood.sigma`, `train.stages.0.optimizer.lr`) to its range.
    Alignment, data, protocol, machine, seed and epochs cannot be searched.
    """
    metric: str = "val_mae"
    """The figure to minimise: `val_mae`, the mean absolute error of the validation faces in years;
    or `loss` or `loss.<term>`, the training loss, if no loss setting is searched. A trial's figure
    is that of its best epoch."""
    trials: Count = 40
    """Number of trials. The first one has the recipe's own settings, if they are within the
    ranges."""
    minutes: Annotated[float, Field(ge=0)] = 0.0
    """Time for the trials in minutes, over all runs of the same search, without the finalists.
    Trials that still run then are stopped. 0 is no limit.
    """
    at_once: Annotated[int, Field(ge=0)] = 0
    """Trials at once; 0 means `scale.parallel_trainings`. More trials than GPUs share the GPUs
    evenly. With 1 the same search has the same trials each time.
    """
    startup: Count = 10
    """Trials drawn at random before the Parzen estimator (TPE; Bergstra et al., NeurIPS 2011)
    proposes them.
    """
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the proposals. `train.seed` is that of the trainings."""
    asha: Asha = Asha()
    """When to stop a trial early."""
    finalists: Finalists = Finalists()
    """Which trials are trained again."""

    @model_validator(mode="after")
    def _searches_something(self) -> Self:
        if not self.space:
            raise ValueError(
                "space is empty, so there is nothing to search; name a setting, e.g. loss.neighborhood.sigma"
            )
        return self
