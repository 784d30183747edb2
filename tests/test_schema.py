"""The words of the column `gender`, which all commands read alike."""

from __future__ import annotations

import pytest

from ageray import schema
from ageray.data.protocols.morph import _cell
from ageray.data.protocols.units import Face
from ageray.data.stream import gender_number


@pytest.mark.parametrize("word", ["male", "M", " man ", "Boy"])
def test_words_for_male(word: str) -> None:
    assert schema.gender(word) == "male"
    assert gender_number(word) == 0


@pytest.mark.parametrize("word", ["Female", "f", "W", "woman", "girl"])
def test_words_for_female(word: str) -> None:
    assert schema.gender(word) == "female"
    assert gender_number(word) == 1


@pytest.mark.parametrize("word", [None, "", "u", "unknown", "1"])
def test_other_words_are_unknown(word: str | None) -> None:
    assert schema.gender(word) is None
    assert gender_number(word) == -1


def test_protocols_of_morph_read_the_same_words() -> None:
    face = Face(key="a", subject=None, gender="Woman", group="White", dataset="set")
    assert _cell(face) == ("white", "female")
