"""Labels of a face as numbers, which losses and galleries compare: gender and subject."""

from __future__ import annotations

import hashlib

MALE = frozenset({"male", "m", "man", "boy"})
FEMALE = frozenset({"female", "f", "w", "woman", "girl"})
"""Words for the two genders, in lower case."""


def gender_number(name: str | None) -> int:
    """0 male, 1 female, -1 anything else."""
    word = (name or "").strip().lower()
    if word in MALE:
        return 0
    return 1 if word in FEMALE else -1


def subject_number(dataset: str, subject: str | None) -> int:
    """A number above 0 for a subject of a data set, the same in every process; 0 if unknown."""
    if subject is None:
        return 0
    digest = hashlib.blake2b(f"{dataset}\0{subject}".encode(), digest_size=8).digest()
    return 1 + int.from_bytes(digest[:7], "big")
