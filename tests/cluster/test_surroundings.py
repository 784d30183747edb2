"""Ray where the home folder cannot be written and the temporary folder has a long path."""

from __future__ import annotations

import os
import signal
from importlib import import_module
from pathlib import Path

import pytest

from ageray.errors import UserError
from ageray.experiment import Scale

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


def test_the_command_keeps_its_own_end_on_sigterm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's handler would end the driver with SIGABRT, and nobody would say what is kept."""

    def own(number: int, frame: object) -> None:
        """Is never called."""

    def start(_: object) -> None:
        signal.signal(signal.SIGTERM, lambda number, frame: None)

    monkeypatch.setattr(connect.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(connect, "_start", start)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = signal.signal(signal.SIGTERM, own)
    try:
        connect.connect(Scale())
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_signal_waits_until_ray_has_started() -> None:
    events: list[object] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: events.append(number))
    with connect._signals_wait():
        signal.raise_signal(signal.SIGTERM)
        connect.ray._private.utils.set_sigterm_handler(signal.SIG_IGN)
        events.append("started")
    assert events == ["started", signal.SIGTERM]
    signal.raise_signal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, before)
    assert events[2:] == [signal.SIGTERM]


def test_a_second_interrupt_ends_the_start_of_ray() -> None:
    before = signal.getsignal(signal.SIGINT)
    events: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        _interrupt_twice(events)
    assert events == ["first"]
    assert signal.getsignal(signal.SIGINT) is before


def _interrupt_twice(events: list[str]) -> None:
    with connect._signals_wait():
        signal.raise_signal(signal.SIGINT)
        events.append("first")
        signal.raise_signal(signal.SIGINT)
        events.append("second")
