"""What the service decides before a request comes: settings, keys, the file for `serve deploy`, the queue."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from ageray.errors import UserError
from ageray.serve import auth
from ageray.serve.errors import ApiError
from ageray.serve.routes import ConcurrencyLimit
from ageray.serve.settings import Limits, Service, from_words
from jobs import serve as job

FILE = Path(__file__).parents[2] / "configs" / "serve.yaml"


def test_the_file_for_serve_deploy_is_valid() -> None:
    schema = ServeDeploySchema.model_validate(yaml.safe_load(FILE.read_text()))
    (application,) = schema.applications
    assert application.import_path == "ageray.serve.app:app"
    assert Service.model_validate(application.args).models.most == 2
    assert auth.is_loopback(schema.http_options.host)


def test_words_are_settings() -> None:
    made = from_words(["limits.images=3", "batches.inputs=[/a, /b]"], model="m")
    assert (made.limits.images, made.batches.inputs, made.model) == (3, ("/a", "/b"), "m")
    with pytest.raises(UserError, match=r"limits.image: Extra inputs are not permitted"):
        from_words(["limits.image=3"])
    with pytest.raises(UserError, match="neither an option nor key=value"):
        from_words(["limits"])
    with pytest.raises(UserError, match="least must not be above most"):
        from_words(["doors.least=3"])


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", "127.0.0.1.example.org"])
def test_others_need_keys(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(auth.VARIABLE, raising=False)
    with pytest.raises(UserError, match=auth.VARIABLE):
        auth.check_host(host)
    monkeypatch.setenv(auth.VARIABLE, "0123456789abcdef")
    auth.check_host(host)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "localhost:8000", "127.0.0.1:80", "::1", "[::1]:8000", "::ffff:127.0.0.1"],
)
def test_this_machine_needs_none(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(auth.VARIABLE, raising=False)
    assert auth.is_loopback(host)
    auth.check_host(host)


def test_keys_are_compared_by_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(auth.VARIABLE, "first-key-0123456789, second-key-0123456789")
    known = auth.digests()
    assert auth.fits("second-key-0123456789", known)
    assert not auth.fits("second-key-012345678", known)
    monkeypatch.setenv(auth.VARIABLE, "short")
    with pytest.raises(UserError, match="key 1 has 5 characters"):
        auth.digests()


def test_a_full_door_says_when_to_come_back() -> None:
    enter = ConcurrencyLimit(Limits(requests=1, retry_after_s=7))
    with enter():
        with pytest.raises(ApiError) as caught, enter():
            pass
        assert (caught.value.status, caught.value.headers) == (503, {"Retry-After": "7"})
    with enter():
        pass


def test_command_refuses_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(auth.VARIABLE, raising=False)
    for words, text in [
        (["--host", "0.0.0.0", "--port", "47991"], auth.VARIABLE),
        (["--port", "0"], "not a port"),
        (["--model", "zoo:none", "--port", "47991"], "no such model"),
        (["limits.body=1"], "limits.body"),
    ]:
        with pytest.raises(UserError, match=text):
            job.main(words)
