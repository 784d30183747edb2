"""Labels of a face as numbers, which losses and galleries compare: gender and subject."""

from __future__ import annotations

import hashlib

from ageray import schema


def gender_number(name: str | None) -> int:
    """0 male, 1 female, -1 anything else."""
    gender = schema.gender(name)
    return -1 if gender is None else schema.GENDERS.index(gender)


def subject_number(dataset: str, subject: str | None) -> int:
    """A number above 0 for a subject of a data set, the same in every process; 0 if unknown."""
    if subject is None:
        return 0
    digest = hashlib.blake2b(f"{dataset}\0{subject}".encode(), digest_size=8).digest()
    return 1 + int.from_bytes(digest[:7], "big")
