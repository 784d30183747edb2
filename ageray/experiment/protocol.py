"""`protocol`: which faces train, which select and which test."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ageray.experiment.strict import Share, Strict


class Protocol(Strict):
    """Which faces train, which select (validation) and which test."""

    name: Literal["random", "all"] = "random"
    """`random`: seeded shares; faces of one subject stay together where subjects are known. `all`: every face is a test face (a set that
    the model has never seen)."""
    val: Share = 0.05
    """Share of the faces (or subjects) for validation."""
    test: Share = 0.1
    """Share of the faces (or subjects) for the test."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the split alone, so that models trained with different seeds share it."""

    @model_validator(mode="after")
    def _leaves_training_rows(self) -> Self:
        if self.val + self.test >= 1:
            raise ValueError(f"val + test must leave faces to train on; got {self.val} + {self.test}")
        return self
