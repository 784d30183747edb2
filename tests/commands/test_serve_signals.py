"""How `ageray serve` ends that a signal interrupts, while it starts and afterwards."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
import ray
from ray import serve as ray_serve

from ageray.commands import cli, serve
from ageray.serve import app


@pytest.fixture(autouse=True)
def _no_service(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing starts or ends, and this process gets back its handlers of signals."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(serve, "_check_port", lambda host, port: None)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray_serve, "shutdown", lambda: print("(raylet) Task x failed"))
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_start_with_one_line(
    number: int, code: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(app, "start", lambda *_: signal.raise_signal(number))
    with pytest.raises(SystemExit) as ending:
        cli.run(serve.main, ["--port", "8766"])
    assert ending.value.code == code
    out, err = capfd.readouterr()
    line = "interrupted: the service has ended; to start it again: ageray serve --port 8766"
    assert (out, err.strip()) == ("", line)


def test_a_signal_that_gets_lost_ends_the_service_after_its_start(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Python ignores exceptions in callbacks, such as those of a fork."""

    def start(*_: object) -> None:
        with pytest.raises(SystemExit):
            signal.raise_signal(signal.SIGTERM)

    def stop() -> int:
        print("(raylet) Task y failed")
        return 0

    monkeypatch.setattr(app, "start", start)
    monkeypatch.setattr(app, "stop", stop)
    cli.run(serve.main, [])
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert (len(lines), lines[1].partition(":")[0], err) == (2, "ending", "")
