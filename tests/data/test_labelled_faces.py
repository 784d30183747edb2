"""The labels of face shards, and what is said where there are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from ageray.config import load
from ageray.data.labelled_faces import faces_digest, labelled_faces
from ageray.errors import UserError
from ageray.synthetic import faces

ROOT = Path(__file__).resolve().parents[2]


def test_what_is_missing_is_told_with_the_command_that_writes_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none: there is no such folder; write it with ageray prepare$"):
        labelled_faces(str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"holds no face shards .* write them with ageray prepare$"):
        labelled_faces(str(tmp_path))


def test_weights_of_the_zoo_are_those_of_their_file(tmp_path: Path) -> None:
    faces.write_faces_table(tmp_path, 4, size=32)
    labelled = labelled_faces(str(tmp_path))

    def digest(weights: str) -> str:
        words = [f"model.weights={weights}", f"data.shards={tmp_path}"]
        return faces_digest(load([str(ROOT / "configs" / "frozen.yaml")], words), labelled, [0.5])

    file = ROOT / "ageray" / "zoo" / "default" / "1" / "model.safetensors"
    assert digest("zoo:default@1") == digest(str(file))
    assert digest("zoo:fast") != digest("zoo:default@1")
