"""YAML text to nodes and back: types, places, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ageray.config.nodes import Problem, wrap
from ageray.config.yaml_text import YamlText, write

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def read(text: str, has_lines: bool = True) -> tuple[Any, list[str]]:
    """The plain value (None if unreadable) and the problems."""
    problems: list[Problem] = []
    node = YamlText("f.yaml", 0, has_lines, problems).read(text)
    return node and node.plain(), [str(problem) for problem in problems]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 100000.0),
        (".5", 0.5),
        ("-2.", -2.0),
        ("5e+2", 500.0),
        ("010", 10),
        ("-3", -3),
        ("+3", 3),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("no", "no"),
        ("off", "off"),
        ("Yes", "Yes"),
        ("none", "none"),
        ("1_000", "1_000"),
        ("0x10", "0x10"),
        ("1:30", "1:30"),
        ("2001-01-01", "2001-01-01"),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("1e-3x", "1e-3x"),
        ("s3://bucket/a b", "s3://bucket/a b"),
        ("'1e-3'", "1e-3"),
        ('"null"', "null"),
        ("''", ""),
        ("<<", "<<"),
    ],
)
def test_scalars_are_of_yaml_1_2(text: str, value: Any) -> None:
    got, problems = read(f"- {text}")
    assert problems == []
    assert got == [value]
    assert type(got[0]) is type(value)


def test_a_number_too_long_for_an_int_is_infinite() -> None:
    assert read("9" * 5000) == (math.inf, [])


def test_places_in_nested_and_flow_style() -> None:
    text = """\
train:
  stages:
    - epochs: 3
      optimizer: {name: sgd,
        lr:
          0.1}
    -
      epochs: 4
  milestones: [0.5,
    0.75]
"""
    problems: list[Problem] = []
    node = YamlText("f.yaml", 7, True, problems).read(text)
    assert node is not None
    lines = {
        ("train",): 1,
        ("train", "stages"): 2,
        ("train", "stages", 0): 3,
        ("train", "stages", 0, "optimizer"): 4,
        ("train", "stages", 0, "optimizer", "name"): 4,
        ("train", "stages", 0, "optimizer", "lr"): 5,  # a key's line, where its value is on the next
        ("train", "stages", 1): 8,
        ("train", "stages", 1, "epochs"): 8,
        ("train", "milestones"): 9,
        ("train", "milestones", 0): 9,
        ("train", "milestones", 1): 10,
    }
    found = {keys: node.closest_node(keys).place for keys in lines}
    assert {keys: place.line for keys, place in found.items()} == lines
    assert {(place.order, place.source) for place in found.values()} == {(7, "f.yaml")}
    assert node.find(("train", "stages", 2)) is None
    assert node.closest_node(("train", "stages", 2, "epochs")) is node.find(("train", "stages"))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: 2\na: 3\n", "f.yaml:3: a: key given twice (the first is in line 1)"),
        ("a:\n  - {b: 1, c: 2,\n     b: 3}", "f.yaml:3: a.0.b: key given twice (the first is in line 2)"),
        (
            "a:\n  b:\nc: 1",
            "f.yaml:2: a.b: has no value; write null for none, {} for a mapping of defaults, '' for "
            "empty text",
        ),
        ("a: [1, [x, y]: 2]", "f.yaml:1: a.1: a key must be text, not a list or a mapping"),
        ('a: 1\n"b\\nc": 1\n"b\\nc": 1', "f.yaml:3: 'b\\nc': key given twice (the first is in line 2)"),
    ],
)
def test_content_that_is_refused(text: str, problem: str) -> None:
    assert read(text)[1] == [problem]


def test_several_problems_of_one_text() -> None:
    assert [text.split(": ")[:2] for text in read("a: {b: 1, b: 2}\nc:\na: 2")[1]] == [
        ["f.yaml:1", "a.b"],
        ["f.yaml:2", "c"],
        ["f.yaml:3", "a"],
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: c: d\n", "f.yaml:2: not valid YAML: mapping values are not allowed here"),
        (
            "a: 1\nb: 'x\n\nc: 2\n",
            "f.yaml:5: not valid YAML: while scanning a quoted scalar, begun in line 2: found "
            "unexpected end of stream",
        ),
        (
            "a:\n\t- 1",
            "f.yaml:2: not valid YAML: while scanning for the next token: found character '\\t' "
            "that cannot start any token",
        ),
        ("a: &x 1\nb: *x", "f.yaml:1: not valid YAML: anchors, aliases and tags are not supported"),
        ("a: 1\nb: *x", "f.yaml:2: not valid YAML: anchors, aliases and tags are not supported"),
        ("a: 1\nb: !!int 3", "f.yaml:2: not valid YAML: anchors, aliases and tags are not supported"),
        (
            "a: !!python/name:os.system x",
            "f.yaml:1: not valid YAML: anchors, aliases and tags are not supported",
        ),
        ("a: 1\nb: x\0", "f.yaml:2: not valid YAML: character U+0000 is not allowed"),
        ('a: "\\ud800"', "f.yaml:1: not valid YAML: half of a surrogate pair is not a character"),
        ("[" * 3000, "f.yaml: not valid YAML: nested too deeply"),
        (
            "a: 1\n---\nb: 2",
            "f.yaml:2: not valid YAML: expected a single document in the stream, begun in line 1: "
            "but found another document",
        ),
    ],
)
def test_text_that_is_not_yaml(text: str, problem: str) -> None:
    assert read(text) == (None, [problem])


def test_a_text_without_lines_names_its_source_alone() -> None:
    assert read("{a: 1, a: 2", has_lines=False)[1][0].startswith(
        "f.yaml: not valid YAML: while parsing a flow mapping: "
    )
    assert read("{a: 1, a: 2}", has_lines=False)[1] == ["f.yaml: a: key given twice"]


@given(PLAIN)
def test_what_is_written_reads_back(value: Any) -> None:
    assert read(write(value)) == (value, [])


@given(PLAIN)
def test_yaml_1_1_reads_the_same_text_from_it(value: Any) -> None:
    """Text stays text for other tools, which may know YAML 1.1 alone."""

    def leaves(value: Any) -> list[Any]:
        if isinstance(value, dict):
            return [leaf for item in value.items() for leaf in leaves(list(item))]
        return [leaf for item in value for leaf in leaves(item)] if isinstance(value, list) else [value]

    def texts(value: Any) -> list[str]:
        return [leaf for leaf in leaves(value) if isinstance(leaf, str)]

    assert texts(yaml.safe_load(write(value))) == texts(value)


@given(PLAIN)
def test_wrapping_is_undone_by_plain(value: Any) -> None:
    place = YamlText("f.yaml", 0, False, [])._place(None)
    assert wrap(value, place).plain() == value


@given(st.text())
def test_any_text_reads_or_is_a_problem(text: str) -> None:
    value, problems = read(text)
    assert all("\n" not in problem for problem in problems)
    assert value is None or problems or read(write(value)) == (value, [])
