"""Ray where the home folder cannot be written and the temporary folder has a long path."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path

import pytest

from ageray.errors import UserError

connect = import_module("ageray.cluster.connect")  # the package has a function of this name


def test_without_a_home_folder_ray_gets_a_token_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    connect._provide_token()
    assert "RAY_AUTH_TOKEN" not in os.environ
    monkeypatch.setenv("HOME", str(tmp_path / "gone"))
    connect._provide_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    connect._provide_token()
    assert "RAY_AUTH_TOKEN" not in os.environ


def test_a_long_temporary_folder_is_not_for_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/tmp")
    assert connect._short_folder() is None
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/scratch/" + "x" * 60)
    assert connect._short_folder() == f"/tmp/ray-{os.getuid()}"
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(UserError, match="RAY_TMPDIR"):
        connect._short_folder()
