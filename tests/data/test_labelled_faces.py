"""The labels of face shards, and what is said where there are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from ageray.data.labelled_faces import labelled_faces
from ageray.errors import UserError


def test_what_is_missing_is_told_with_the_command_that_writes_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none: there is no such folder; write it with ageray prepare$"):
        labelled_faces(str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"holds no face shards .* write them with ageray prepare$"):
        labelled_faces(str(tmp_path))
