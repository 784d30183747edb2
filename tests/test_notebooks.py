"""The notebooks: their form, and that their cells run, one after the other."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))


def cells(file: Path) -> list[str]:
    """The text of the code cells."""
    content = json.loads(file.read_text())
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_has_no_results_and_every_cell_is_python(file: Path) -> None:
    content = json.loads(file.read_text())
    assert content["nbformat"] == 4
    for cell in content["cells"]:
        assert not cell.get("outputs")
        assert cell["id"]
    for source in cells(file):
        ast.parse(source)


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_runs(file: Path, ray_local: None) -> None:
    names: dict[str, Any] = {}
    for number, source in enumerate(cells(file)):
        exec(compile(source, f"{file.name}, cell {number}", "exec"), names)
    assert names["scores"].summary["images"] == len(names["photos"])
    assert len(names["frame"]) >= len(names["photos"])
