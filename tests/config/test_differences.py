"""What two runs differ in, setting by setting."""

from __future__ import annotations

from ageray.config import differences, flat
from ageray.experiment import Experiment, Train

PLAN = {"model": "1a", "detector": {"threshold": 0.6, "pad": 0.25}}


def test_only_the_scalars_that_changed_are_named() -> None:
    now = {"model": "1a", "detector": {"threshold": 0.8, "pad": 0.25}}
    assert differences(PLAN, now) == ["detector.threshold: 0.6, now 0.8"]
    assert differences(PLAN, PLAN) == []


def test_a_missing_key_counts_as_null() -> None:
    assert differences(PLAN, {"model": "2b"}) == [
        'model: "1a", now "2b"',
        "detector.threshold: 0.6, now null",
        "detector.pad: 0.25, now null",
    ]
    assert differences({}, {"images": 3}) == ["images: null, now 3"]


def test_elements_of_lists_are_compared_one_by_one() -> None:
    assert differences({"ages": [0, 100]}, {"ages": [0, 90]}) == ["ages.1: 100, now 90"]
    assert differences({"ages": []}, {"ages": [0]}) == ["ages.0: null, now 0"]


def test_experiments_are_compared_as_dumped() -> None:
    before, now = (Experiment(train=Train(seed=seed)).model_dump(mode="json") for seed in (0, 7))
    assert differences(before, now) == ["train.seed: 0, now 7"]


def test_flat_keeps_an_empty_mapping_as_a_leaf() -> None:
    assert flat({"a": {"b": [1, 2], "c": {}}}) == {"a.b.0": 1, "a.b.1": 2, "a.c": {}}
