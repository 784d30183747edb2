"""Settings files by name: every file has one, it is the file, and a wrong name is answered."""

from __future__ import annotations

from pathlib import Path

import pytest

from ageray import config
from ageray.commands import cli
from ageray.config import shipped
from ageray.errors import UserError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def test_every_file_of_an_experiment_has_a_name() -> None:
    files = {Path(shipped.path_of(name)) for name in shipped.names()}
    small = set((CONFIGS / "tables" / "small").iterdir())  # given by their paths, beside tables of a name
    assert files == set(CONFIGS.rglob("*.yaml")) - {CONFIGS / "serve.yaml"} - small
    assert {"recipe:baseline", "data:utkface", "scale:laptop", "tune:loss"} <= set(shipped.names())


def test_a_name_reads_the_file() -> None:
    words = ["recipe:baseline", "data:utkface", "scale:laptop", "train.seed=3"]
    paths, overrides = config.parse_arguments(words)
    files = [str(CONFIGS / name) for name in ("baseline.yaml", "data/utkface.yaml", "scale/laptop.yaml")]
    assert config.load(paths, overrides) == config.load(files, ["train.seed=3"])


@pytest.mark.parametrize("word", ["recipe:baseline", "data:mine", "scale:laptop"])
def test_a_name_is_a_setting_on_a_command_line(word: str) -> None:
    assert cli.is_setting(word)


@pytest.mark.parametrize("word", ["zoo:default", "data://bucket/x", "s3://bucket/data", "runs/recipe:x"])
def test_other_words_with_a_colon_are_none(word: str) -> None:
    assert not shipped.is_name(word)
    assert shipped.path_of(word) == word


def test_a_wrong_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"recipe:basline: .*did you mean recipe:baseline\?"):
        config.load(["recipe:basline"])
    with pytest.raises(UserError, match=r"scale:qqq: .*there are scale:cluster, scale:gpu"):
        config.load(["scale:qqq"])


def test_a_mistake_in_a_value_names_the_word() -> None:
    with pytest.raises(UserError, match="recipe:baseline"):
        config.load(["recipe:baseline", "recipe:baseline"])
