"""A model's card as a page."""

from __future__ import annotations

import pytest

from ageray import bundle
from ageray.report.card import card_page


def test_the_card_of_the_model_that_ships() -> None:
    page = card_page("zoo:default", "0123", bundle.load("zoo:default").card)
    assert page.count("<svg") >= 6  # by decade of four sets, by gender and group where they are known
    for text in ("fgnet, by decade of age", "utkface, by group", "Deciding anything about a person", "4.50"):
        assert text in page
    assert "<script" not in page


@pytest.mark.parametrize(
    "card", [{}, {"name": "x", "figures": None}, {"figures": {"a": {"mae": 3.2, "by_decade": []}}}]
)
def test_every_part_may_be_missing(card: dict[str, object]) -> None:
    page = card_page("mine", "0123", card)
    assert "mine: model card" in page
    assert "<svg" not in page


def test_names_are_no_html() -> None:
    page = card_page(
        "<b>x", "0", {"figures": {"<i>y": {"mae": 1.0, "by_group": [{"group": "<u>", "mae": 2.0}]}}}
    )
    assert "<b>x" not in page
    assert "<i>y" not in page
    assert "<u>" not in page
