"""benchmarks/gpu.py on a CPU: every figure is a number, and a step that hangs or fails is told."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delitem(sys.modules, "gpu", raising=False)
    return importlib.import_module("gpu")


def test_small_steps_give_numbers(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", torch.compile)  # a step replaces it
    options = argparse.Namespace(small=True, model="zoo:default", recipe="default")
    for name in ("ceilings", "compile", "graph", "actor", "yunet", "photos", "detect", "decode"):
        figures = gpu.STEPS[name][1](options)
        assert figures
        for what, figure in figures.items():
            if what.endswith("from ONNX Runtime"):
                assert figure < 1e-3, what
            elif what.startswith("years apart"):
                assert figure == 0, what  # on a CPU
            else:
                assert figure > 0, what


def test_all_steps_end_within_ten_minutes(gpu: ModuleType) -> None:
    assert sum(limit for limit, _ in gpu.STEPS.values()) < 600


def test_a_step_that_hangs_is_ended_and_told(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gpu.STEPS, "ceilings", (0.2, gpu.ceilings))
    started = time.perf_counter()
    assert gpu.run("ceilings", ["--small"]) == {"error": "not done after 0.2 s"}
    assert time.perf_counter() - started < 20
