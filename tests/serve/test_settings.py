"""What the service decides before a request comes: settings, keys, the file for `serve
deploy`, the queue."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from ray import serve
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import ServeDeploySchema

from ageray import bundle, config
from ageray.commands import serve as job
from ageray.errors import UserError
from ageray.experiment import Align, Experiment
from ageray.models.build import build
from ageray.serve import Service, app, auth, model
from ageray.serve.app import _scaling
from ageray.serve.errors import ApiError
from ageray.serve.routes import ConcurrencyLimit
from ageray.serve.settings import Limits, Replicas

FILE = Path(__file__).parents[2] / "configs" / "serve.yaml"


def test_the_file_for_serve_deploy_is_valid() -> None:
    schema = ServeDeploySchema.model_validate(yaml.safe_load(FILE.read_text()))
    (application,) = schema.applications
    assert application.import_path == "ageray.serve.app:app"
    assert Service.model_validate(application.args).predictor.max_replicas == 2
    assert auth.is_loopback(schema.http_options.host)


def parse(*words: str, **base: str) -> Service:
    return config.parse(Service, overrides=words, base=base, base_name="--model")[0]


def test_words_are_settings() -> None:
    settings = parse("limits.images=3", "batches.inputs=[/a, /b]", model="m")
    assert (settings.limits.images, settings.batches.inputs, settings.model) == (3, ("/a", "/b"), "m")
    assert parse("model=zoo:other", model="m").model == "zoo:other"
    assert parse() == Service()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "limits.imges=3",
            f"limits.imges: unknown key; did you mean 'images'? (known: {', '.join(Limits.model_fields)})",
        ),
        (
            "limts.images=3",
            f"limts: unknown key; did you mean 'limits'? (known: {', '.join(Service.model_fields)})",
        ),
        ("limits.images=0", "limits.images: 0 is not allowed (allowed: a whole number, at least 1)"),
        ("gpu=atuo", "gpu: 'atuo' is not allowed; did you mean 'auto'? (allowed: true, false or auto)"),
        ("gpu=yes", "gpu: 'yes' is not allowed (allowed: true, false or auto)"),
        ("limits", "is not key=value"),
        ("limits={images: 1, images: 2}", "limits.images: key given twice"),
        ("ingress.min_replicas=3", "ingress: min_replicas must not be above max_replicas; got 3 and 1"),
    ],
)
def test_a_mistake_in_the_services_settings_is_told_like_any_other(word: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        parse(word, model="m")
    assert str(error.value) == f"argument {word!r}: {message}"


def test_replicas_are_what_serve_takes() -> None:
    fixed, scaled = Replicas(min_replicas=2, max_replicas=2), Replicas(max_replicas=3)
    assert _scaling(fixed) == {"num_replicas": 2}
    assert AutoscalingConfig(**_scaling(scaled)["autoscaling_config"]).max_replicas == 3


def test_the_model_computes_in_the_precision_of_the_settings(tmp_path: Path) -> None:
    experiment = Experiment(align=Align(size=64))
    bundle.save(str(tmp_path / "m"), build(experiment.model, seed=0), experiment, {"name": "tiny"})
    ages = {}
    for precision in ("float32", "bf16"):
        settings = Service(model=str(tmp_path / "m"), threads=1, precision=precision)  # type: ignore[arg-type]
        replica = model.AgeModel.func_or_class(settings)
        ages[precision] = replica._age_faces(replica._blank).column("age")[0].as_py()
    assert ages["float32"] != ages["bf16"]
    assert ages["float32"] == pytest.approx(ages["bf16"], abs=1)


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
    digests = auth.digests()
    assert auth.is_valid("second-key-0123456789", digests)
    assert not auth.is_valid("second-key-012345678", digests)
    assert not auth.is_valid("", digests)
    monkeypatch.setenv(auth.VARIABLE, "short")
    with pytest.raises(UserError, match="key 1 has 5 characters"):
        auth.digests()


def test_a_full_service_says_when_to_come_back() -> None:
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
        (["limits.imges=3"], "did you mean 'images'"),
    ]:
        with pytest.raises(UserError, match=text):
            job.main(words)


@pytest.mark.parametrize(
    ("message", "kind", "text"),
    [
        (f"Retrying 1 more time(s). Error:\nActorDiedError: x\n{app._LOST}.", UserError, "lack of memory"),
        ("Retrying 1 more time(s). Error:\nKeyError: 'ours'", RuntimeError, "KeyError: 'ours'"),
    ],
)
def test_a_service_that_does_not_start(
    message: str, kind: type[Exception], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Serve's own error leaves out: of processes that the kernel ends, what helps; else the
    cause.
    """
    deployments = {"AgeModel": SimpleNamespace(message=message), "Ingress": SimpleNamespace(message="")}
    status = SimpleNamespace(applications={app.NAME: SimpleNamespace(deployments=deployments)})
    monkeypatch.setattr(serve, "status", lambda: status)
    error = app._not_started()
    assert type(error) is kind
    assert text in str(error)
