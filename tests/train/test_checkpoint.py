"""The checkpoint of training: a damaged one is never trained on."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from ageray import storage
from ageray.errors import UserError
from ageray.storage.lease import Lease
from ageray.train import checkpoint, plan
from ageray.train.checkpoint import AsyncCheckpointer
from ageray.train.files import RunFiles


def state(step: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    return {"network": {"w": torch.randn(8, 8, generator=generator)}, "step": step, "log": [{"loss": 0.5}]}


def saved(folder: Path, *steps: int) -> Path:
    """The file after these states were saved."""
    writer = AsyncCheckpointer(str(folder / "state.pt"))
    for step in steps:
        writer.save(state(step))
    writer.wait()
    return folder / "state.pt"


def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    same = torch.equal(one["network"]["w"], other["network"]["w"])
    return same and one["step"] == other["step"] and one["log"] == other["log"]


def test_every_flipped_bit_is_noticed_or_harmless(tmp_path: Path) -> None:
    """Half of the file is the archive's own bookkeeping, of which some bits mean nothing."""
    file = saved(tmp_path, 1)
    content = file.read_bytes()
    draw = random.Random(0)
    noticed = 0
    for _ in range(400):
        damaged = bytearray(content)
        damaged[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        file.write_bytes(damaged)
        try:
            loaded = checkpoint.load(str(file))
        except UserError:
            noticed += 1
        else:
            assert loaded is not None
            assert equal(loaded, state(1))
    assert noticed > 100


@pytest.mark.parametrize("damage", ["a bit", "cut", "empty"])
def test_the_one_before_is_taken_and_named(damage: str, tmp_path: Path) -> None:
    file = saved(tmp_path, 1, 2)
    content = bytearray(file.read_bytes())
    content[content.index(state(2)["network"]["w"].numpy().tobytes()) + 9] ^= 1
    file.write_bytes({"a bit": content, "cut": content[:-40], "empty": b""}[damage])
    notes: list[str] = []
    loaded = checkpoint.load(str(file), notes.append)
    assert loaded is not None
    assert equal(loaded, state(1))
    assert len(notes) == 1
    assert "state.pt: " in notes[0]
    assert "going on from the one before, state.before.pt" in notes[0]
    (tmp_path / "state.before.pt").write_bytes(b"x")
    with pytest.raises(UserError, match=r"so is the one before.*--fresh"):
        checkpoint.load(str(file), notes.append)


def test_a_whole_one_needs_no_other(tmp_path: Path) -> None:
    file = saved(tmp_path, 1, 2, 3)
    (tmp_path / "state.before.pt").write_bytes(b"x")
    loaded = checkpoint.load(str(file), pytest.fail)
    assert loaded is not None
    assert equal(loaded, state(3))
    assert checkpoint.load(str(tmp_path / "none.pt")) is None


def test_fresh_removes_a_run_and_nothing_else(tmp_path: Path) -> None:
    files = RunFiles(str(tmp_path / "run"))
    plan._forget(files)
    for name in ("config.yaml", "state.pt", "bundle/card.json", "tensorboard/events.out.tfevents.0"):
        storage.write_text(f"{files.folder}/{name}", "x")
    storage.write_text(f"{files.folder}/notes.txt", "mine")
    with pytest.raises(UserError, match="has notes.txt, which ageray train did not write"):
        plan._forget(files)
    storage.remove(files.folder, ["notes.txt"])
    with Lease(files.folder), pytest.raises(UserError, match="another training is writing there"):
        plan._forget(files)
    assert len(storage.names_below(files.folder)) == 4
    plan._forget(files)
    assert not storage.exists(files.folder)
