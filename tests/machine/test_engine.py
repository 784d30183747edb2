"""One place decides whether this machine's processes or Ray do the work."""

from __future__ import annotations

from typing import Any

import pytest

from ageray.errors import UserError
from ageray.experiment import Scale
from ageray.machine import engine


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four CPUs, no GPU, no Ray."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(engine, "usable_cpus", lambda: 4)
    monkeypatch.setattr(engine, "_has_gpu", lambda: False)
    monkeypatch.setattr(engine, "_has_joined", lambda: False)


@pytest.mark.parametrize(
    ("scale", "photos", "gpu", "address", "joined", "expected"),
    [
        ({}, 1, False, "", False, "local"),
        ({}, 10**6, False, "", False, "local"),
        ({}, 2000, True, "", False, "local"),
        ({}, 2001, True, "", False, "ray"),
        ({"gpu": False}, 2001, True, "", False, "local"),
        ({"gpu": True}, 1, True, "", False, "ray"),
        ({"detect": "gpu"}, 1, False, "", False, "ray"),
        ({"detect": "cpu"}, 1, False, "", False, "local"),
        ({}, 1, False, "10.0.0.1:6379", False, "ray"),
        ({}, 1, False, "auto", False, "ray"),
        ({}, 1, False, "local", False, "local"),
        ({}, 1, False, "", True, "ray"),
        ({"engine": "ray"}, 1, False, "", False, "ray"),
        ({"engine": "local"}, 10**6, True, "10.0.0.1:6379", True, "local"),
    ],
)
def test_choice(
    scale: dict[str, Any],
    photos: int,
    gpu: bool,
    address: str,
    joined: bool,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine, "_has_gpu", lambda: gpu)
    monkeypatch.setattr(engine, "_has_joined", lambda: joined)
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert engine.choose(Scale(**scale), photos) == expected


def test_a_gpu_and_the_pool_exclude_each_other() -> None:
    with pytest.raises(UserError, match="scale.engine=local computes on CPUs; .*scale.engine=ray"):
        engine.may_be_local(Scale(engine="local", gpu=True))
    with pytest.raises(UserError, match="for scale.detect=gpu use scale.engine=ray"):
        engine.may_be_local(Scale(engine="local", detect="gpu"))


def test_a_hidden_gpu_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(engine, "Path", lambda _: type("Folder", (), {"glob": lambda *_: ["/dev/nvidia0"]}))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert engine._has_gpu()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not engine._has_gpu()
