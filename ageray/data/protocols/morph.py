"""The two protocols of MORPH II that choose faces by race and gender.

Both deal out faces, not people, as the papers do: most people of the test faces are in training too, and the split's notes say how many.
"""

from __future__ import annotations

from collections.abc import Sequence

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
_FEMALE = frozenset({"female", "f", "w", "woman", "girl"})
_MALE = frozenset({"male", "m", "man", "boy"})
_SLACK = 0.97  # MORPH II has about 2,600 White women: 1 to 3 of 5,265 would take 2,632

Cell = tuple[str, str]
_CELLS: tuple[Cell, ...] = (("white", "female"), ("white", "male"), ("black", "female"), ("black", "male"))


def partial(faces: Sequence[Face], seed: int) -> tuple[list[Face], list[Face], list[str]]:
    """Training side and test faces of the partial 80-20 protocol, and notes.

    A seeded sample of 5,493 faces of the group White (or Caucasian), all of them where there are fewer; a fifth of the sample is the test.
    Which 5,493 the papers took is not published. Raises UserError if no face has that group.
    """
    white = [face for face in faces if _word(face.group) in _WHITE]
    if not white:
        raise UserError(
            f"protocol.name=partial_80_20: no face has the group White or Caucasian ({_groups(faces)}); choose another protocol"
        )
    sample = shuffled(white, seed)[:PARTIAL_FACES]
    test = round(0.2 * len(sample))
    short = f"partial_80_20: only {len(sample):,} White faces, not {PARTIAL_FACES:,}; all of them are used"
    return sample[test:], sample[:test], [short] if len(sample) < PARTIAL_FACES else []


def three_sets(faces: Sequence[Face], seed: int) -> tuple[list[Face], list[Face], list[Face], list[str]]:
    """S1, S2, S3 of Guo and Mu (Simultaneous dimensionality reduction and human age estimation via kernel partial least squares
    regression, CVPR 2011), and notes.

    S1 and S2 have 10,530 faces each, as many White as Black ones and in both a woman to three men, as nearly as there are women (at
    worst 1 : 3.1); S3 has the rest, 34,074 of 55,134. A table without enough faces gives sets in the proportion that it has to the whole
    MORPH II, or as large as it allows, with a note. Which faces the paper took is not published: the seed decides.
    Raises UserError if there are not even two White and two Black women, and four men of each group.
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
    taken = {face.key for face in (*s1, *s2)}
    short = f"s1_s2_s3: this set has too few faces for S1 and S2 of {SET_FACES:,}; they have {len(s1):,} each"
    return s1, s2, [face for face in faces if face.key not in taken], [short] if len(s1) < SET_FACES else []


def _fitting(cells: dict[Cell, list[Face]], total: int) -> tuple[int, int]:
    """Half of S1 (one race), and how many of it are women."""
    women, men = (
        min(len(cells[race, gender]) // 2 for race in ("white", "black")) for gender in ("female", "male")
    )
    published = SET_FACES // 2
    for most in (published, max(3, round(published * total / ALL_FACES))):
        if _women(most, women, men):
            return most, _women(most, women, men)
    for half in range(min(most, women + men), 0, -1):
        if _women(half, women, men):
            return half, _women(half, women, men)
    found = ", ".join(f"{len(members)} {' '.join(cell)}" for cell, members in cells.items())
    raise UserError(
        f"protocol.name=s1_s2_s3: needs White and Black women and men in the columns group and gender; there are {found} faces"
    )


def _women(half: int, women: int, men: int) -> int:
    """How many of `half` faces are women where so many women and men are at hand; 0 if the proportion cannot be had."""
    wanted = round(half / 4)
    count = min(wanted, women)
    fits = half - count <= men and (count == wanted or count >= _SLACK * half / 4)
    return count if fits else 0


def _cell(face: Face) -> Cell:
    group, gender = _word(face.group), _word(face.gender)
    race = "white" if group in _WHITE else "black" if group in _BLACK else ""
    return race, "female" if gender in _FEMALE else "male" if gender in _MALE else ""


def _word(name: str | None) -> str:
    return (name or "").strip().lower()


def _groups(faces: Sequence[Face]) -> str:
    found = sorted({face.group for face in faces if face.group is not None})
    return f"groups: {', '.join(found[:6])}" if found else "the column group is empty"
