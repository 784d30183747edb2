"""The figures on the page of a scoring run, each against the table that they are computed from."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from ageray.score.files import ScoreFiles
from ageray.score.page import score_report
from ageray.score.results import OLDEST, Digest

SUMMARY = {
    "input": "photos",
    "images_per_second": 12.345,
    "seconds": 0.4,
    "finished": "2026-01-01 00:00 UTC",
    "model": {"name": "zoo:default", "identity": "0123456789abcdef"},
    "detector": {"search": "auto"},
    "actors": {"actors": 1},
}


def page_of(ages: dict[int, int], folder: Path) -> str:
    """The page of a table with so many faces of each age."""
    counts = np.zeros(OLDEST + 1, np.int64)
    for age, faces in ages.items():
        counts[age] = faces
    faces = int(counts.sum())
    digest = Digest(faces, faces, Counter(), counts, [], {})
    files = ScoreFiles(str(folder))
    score_report(files, digest, SUMMARY, {"name": "tiny"})
    return " ".join(Path(files.page).read_text().split())


def test_the_range_holds_90_percent_and_the_median_half(tmp_path: Path) -> None:
    # of 1000 faces 5 % are 3 to 7 years old, 5 % are 80 to 84; every other share gives another age
    ages = dict.fromkeys([3, 4, 5, 6, 7], 10) | dict.fromkeys(range(11, 71), 15)
    ages |= dict.fromkeys([80, 81, 82, 83, 84], 10)
    page = page_of(ages, tmp_path)
    assert "1,000 faces; half are estimated at 40 years or younger, 90 % at between 7 and 70." in page


def test_the_range_of_uneven_tails(tmp_path: Path) -> None:
    page = page_of({1: 4, 2: 1, 30: 45, 31: 45, 90: 4, 100: 1}, tmp_path)
    assert "100 faces; half are estimated at 30 years or younger, 90 % at between 2 and 31." in page


def test_the_range_of_a_single_face(tmp_path: Path) -> None:
    page = page_of({25: 1}, tmp_path)
    assert "1 faces; half are estimated at 25 years or younger, 90 % at between 25 and 25." in page
