"""`protocol`: which faces train, which select and which test."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ageray.experiment.strict import Share, Strict

_SHARED = ("subject_exclusive", "random")
"""Protocols with shares and folds. The others fix the test faces."""


class Protocol(Strict):
    """Which faces train, which select (validation) and which test. What a protocol leaks is printed
    and stored with the run.
    """

    name: Literal[
        "subject_exclusive", "random", "partial_80_20", "s1_s2_s3", "lopo", "cacd", "fixed", "all"
    ] = "subject_exclusive"
    """`subject_exclusive`: seeded shares or folds of people; a person's faces stay together, a face
    without subject stands for itself. `random`: shares or folds of faces; where subjects are known
    it leaks them. `partial_80_20` (MORPH II): 5,493 White faces, a fifth of them for the test.
    `s1_s2_s3` (MORPH II, Guo and Mu): S1 and S2 of 10,530 faces each, White and Black equal, a
    woman to three men; fold 0 trains on S1, fold 1 on S2, and the rest is the test. `lopo`: leaves
    one person out, the `fold`. `cacd`: by the celebrity's rank, in the column `group`: up to 2
    validation, 3 to 5 test, the others training. `fixed`: the parts in `file`, else those that the
    keys name, as `ageray prepare` leaves them: `<dataset>/train/...` (ChaLearn LAP, MegaAge-Asian)
    or `<dataset>/fold_0/...`, of which `fold` tests (Adience). `all`: every face is a test face (a
    set that the model has never seen)."""
    val: Share = 0.05
    """Share for validation: with shares, of all people (`random`: faces), else of those that are
    not tested; a person whole, but for `random`. Not used where the set has validation faces of its
    own (`cacd`, `fixed`)."""
    test: Share = 0.1
    """Share of the people (`random`: faces) for the test, in `subject_exclusive` and `random`
    without folds.
    """
    folds: Annotated[int, Field(ge=0)] = 0
    """Tests fold `fold` of so many, instead of the share `test`; every face is tested in one fold.
    0 means shares. `subject_exclusive` and `random` only."""
    fold: Annotated[int, Field(ge=0)] | Annotated[str, Field(min_length=1)] = 0
    """Which fold is tested, from 0. `lopo`: which person, by the place among the sorted subjects or
    by name (quote a name of digits: '"003"').
    """
    tests: Literal["test", "val"] = "test"
    """Which of the set's own parts is tested, for `cacd` and `fixed`. `val`: the validation part
    (ChaLearn LAP, as in DHAA's Table 5); the test part is left out, and a share `val` of the
    training part validates."""
    file: str | None = None
    """CSV or Parquet table with the columns `key` and `part` (train, val or test), for `fixed`; the
    split.parquet of a run is one. Local path or url. Without it the keys name the part."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the split alone, so that models trained with different seeds share the split."""

    @model_validator(mode="after")
    def _leaves_training_rows(self) -> Self:
        if self.name in _SHARED and not self.folds and self.val + self.test >= 1:
            raise ValueError(f"val + test must leave faces to train on; got {self.val} + {self.test}")
        if self.name not in ("all", "cacd") and self.val >= 1:
            raise ValueError(f"val must leave faces to train on; got {self.val}")
        return self

    @model_validator(mode="after")
    def _has_the_fold(self) -> Self:
        if self.folds and self.name not in _SHARED:
            raise ValueError(
                f"folds={self.folds}: only {' and '.join(_SHARED)} have folds to choose the number "
                f"of; set folds=0"
            )
        if self.folds == 1:
            raise ValueError("folds=1: one fold leaves no face to train on; give 2 or more, or 0 for shares")
        if self.name == "lopo":
            return self
        count = 2 if self.name == "s1_s2_s3" else self.folds
        if isinstance(self.fold, str):
            raise ValueError(f"fold='{self.fold}': only lopo names a person; give the fold's number, from 0")
        if self.name == "fixed" and not self.file:
            return self
        if not count and self.fold:
            folds = "folds=5, say" if self.name in _SHARED else "fold=0"
            raise ValueError(f"fold={self.fold}: {self.name} has no folds here; set {folds}")
        if count and self.fold >= count:
            raise ValueError(f"fold={self.fold}: there are {count} folds, 0 to {count - 1}")
        return self

    @model_validator(mode="after")
    def _reads_the_file(self) -> Self:
        if self.name != "fixed" and self.file:
            raise ValueError(f"file={self.file}: only fixed reads it; set name=fixed or take file away")
        return self

    @model_validator(mode="after")
    def _tests_a_part_of_the_set(self) -> Self:
        if self.tests == "val" and self.name not in ("cacd", "fixed"):
            raise ValueError(
                "tests=val: only cacd and fixed have a validation part of their own; set tests=test"
            )
        return self
