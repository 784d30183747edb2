"""The two protocols of MORPH II that choose faces by race and gender.

Both split faces, not people, as the papers do. Most people of the test faces are therefore in
training too; the split's notes give the share.
"""

from __future__ import annotations

from collections.abc import Sequence

from ageray import schema
from ageray.data.protocols.units import Face, shuffled
from ageray.errors import UserError

PARTIAL_FACES = 5493
"""White faces of the partial protocol (5,492 in some papers)."""
SET_FACES = 10_530
"""Faces of S1, and of S2."""
ALL_FACES = 55_134
"""Faces of the whole MORPH II."""

_WHITE = frozenset({"white", "caucasian", "european", "w"})
_BLACK = frozenset({"black", "african", "african american", "african-american", "african_american", "b"})
_SLACK = 0.97  # MORPH II has about 2,600 White women: 1 to 3 of 5,265 would take 2,632

Cell = tuple[str, str]
"""Race and gender."""
_CELLS: tuple[Cell, ...] = (("white", "female"), ("white", "male"), ("black", "female"), ("black", "male"))


def partial(faces: Sequence[Face], seed: int) -> tuple[list[Face], list[Face], list[str]]:
    """Training side and test faces of the partial 80-20 protocol, and notes.

    A seeded sample of 5,493 faces of the group White (or Caucasian), or all if there are fewer; a
    fifth of the sample is the test. The papers do not publish their sample. Raises UserError if no
    face has that group.
    """
    white = [face for face in faces if _word(face.group) in _WHITE]
    if not white:
        raise UserError(
            "protocol.name=partial_80_20: no face has the group White or Caucasian "
            f"({_groups(faces)}); choose another protocol"
        )
    sample = shuffled(white, seed)[:PARTIAL_FACES]
    test = round(0.2 * len(sample))
    notes = []
    if len(sample) < PARTIAL_FACES:
        count = f"{len(sample):,} White faces, not {PARTIAL_FACES:,}"
        notes.append(f"partial_80_20: only {count}; all of them are used")
    return sample[test:], sample[:test], notes


def three_sets(faces: Sequence[Face], seed: int) -> tuple[list[Face], list[Face], list[Face], list[str]]:
    """S1, S2, S3 of Guo and Mu (Simultaneous dimensionality reduction and human age estimation via
    kernel partial least squares regression, CVPR 2011), and notes.

    S1 and S2 have 10,530 faces each. In both there are as many White as Black faces, and one woman
    to three men, as nearly as there are women (at worst 1 : 3.1). S3 has the rest, 34,074 of
    55,134. A table without enough faces gives sets in the proportion that it has to the whole MORPH
    II, or as large as it allows, with a note. The paper does not publish its sets: the seed
    decides.

    Raises UserError if there are not even two White and two Black women, and four men of each
    group.
    """
    cells: dict[Cell, list[Face]] = {cell: [] for cell in _CELLS}
    for face in shuffled(faces, seed):
        if (cell := _cell(face)) in cells:
            cells[cell].append(face)
    half, women = _fitting(cells, len(faces))
    s1, s2 = list[Face](), list[Face]()
    for (_, gender), members in cells.items():
        count = women if gender == "female" else half - women
        s1 += members[:count]
        s2 += members[count : 2 * count]
    chosen = {*s1, *s2}
    notes = []
    if len(s1) < SET_FACES:
        notes.append(
            f"s1_s2_s3: this set has too few faces for S1 and S2 of {SET_FACES:,}; they have {len(s1):,} each"
        )
    return s1, s2, [face for face in faces if face not in chosen], notes


def _fitting(cells: dict[Cell, list[Face]], total: int) -> tuple[int, int]:
    """Half of S1 (one race), and how many of it are women."""
    women = min(len(cells["white", "female"]) // 2, len(cells["black", "female"]) // 2)
    men = min(len(cells["white", "male"]) // 2, len(cells["black", "male"]) // 2)
    published = SET_FACES // 2
    in_proportion = max(3, round(published * total / ALL_FACES))
    for half in (published, in_proportion, *range(min(in_proportion, women + men), 0, -1)):
        if _women(half, women, men):
            return half, _women(half, women, men)
    counts = ", ".join(f"{len(members)} {' '.join(cell)}" for cell, members in cells.items())
    raise UserError(
        "protocol.name=s1_s2_s3: needs White and Black women and men in the columns group and gender; "
        f"there are {counts} faces"
    )


def _women(half: int, women: int, men: int) -> int:
    """How many of `half` faces are women, given so many women and men; 0 if one to three is
    impossible.
    """
    quarter = round(half / 4)
    count = min(quarter, women)
    if half - count > men:
        return 0
    if count < quarter and count < _SLACK * half / 4:
        return 0
    return count


def _cell(face: Face) -> Cell:
    group, race = _word(face.group), ""
    if group in _WHITE:
        race = "white"
    elif group in _BLACK:
        race = "black"
    return race, schema.gender(face.gender) or ""


def _word(name: str | None) -> str:
    return (name or "").strip().lower()


def _groups(faces: Sequence[Face]) -> str:
    groups = sorted({face.group for face in faces if face.group is not None})
    if not groups:
        return "the column group is empty"
    return f"groups: {', '.join(groups[:6])}"
