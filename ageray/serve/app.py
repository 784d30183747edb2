"""The application of Ray Serve: its three deployments, their replicas and their resources."""

# no `from __future__ import annotations`: Serve reads the class of a file's `args` from the
# annotation of `app`

from contextlib import suppress
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve import Application
from ray.serve.exceptions import RayServeException

from ageray import bundle, cluster
from ageray.errors import UserError
from ageray.experiment import Scale
from ageray.serve import auth, proxy, records
from ageray.serve.batches import BatchJobs
from ageray.serve.ingress import Ingress
from ageray.serve.model import AgeModel
from ageray.serve.settings import Replicas, Service

NAME = "ageray"
DRAIN_SECONDS = 30.0
"""For requests in flight, when the service is told to end."""

_OTHER_REQUESTS = 32  # concurrent requests of an ingress replica that do not score: pages, health, batches
_LOST = "The actor is dead because its worker process has died"  # in Serve's message
_QUIET = {"log_level": "WARNING", "enable_access_log": False}


def app(settings: Service) -> Application:
    """The application. API keys come from the environment of the process that builds it.

    Raises UserError if there is no such model, or no GPU and `gpu` is true.
    """
    return _application(settings, auth.digests())


def _application(settings: Service, keys: tuple[bytes, ...]) -> Application:
    settings = settings.model_copy(update={"model": bundle.model_for_workers(settings.model)})
    limits = settings.limits
    model = AgeModel.options(  # type: ignore[attr-defined]
        ray_actor_options={"num_cpus": settings.predictor.cpus, "num_gpus": int(_on_gpu(settings))},
        # a batch never fills if fewer calls may run at once than a batch holds
        max_ongoing_requests=4 * settings.max_batch_size,
        health_check_period_s=10,
        health_check_timeout_s=60,
        **_scaling(settings.predictor),
    ).bind(settings)
    batch_jobs = BatchJobs.options(  # type: ignore[attr-defined]
        ray_actor_options={"num_cpus": 0}, max_ongoing_requests=100
    ).bind(settings, records.owner(settings.batches, keys))
    return Ingress.options(  # type: ignore[attr-defined,no-any-return]
        ray_actor_options={"num_cpus": settings.ingress.cpus},
        max_ongoing_requests=limits.requests + _OTHER_REQUESTS,
        max_queued_requests=limits.requests + _OTHER_REQUESTS,
        backpressure_config={"status_code": 503, "retry_after_s": limits.retry_after_s},
        health_check_timeout_s=60,
        **_scaling(settings.ingress),
    ).bind(settings, keys, model, batch_jobs)


def start(settings: Service, host: str, port: int, scale: Scale | None = None) -> None:
    """Serves on `host` and `port` and returns as soon as the model answers.

    Uses the cluster of RAY_ADDRESS, or a Ray that it starts. Raises UserError if others can reach
    `host` and there are no keys, if there is no such model, or if the port is taken.
    """
    auth.check_host(host)
    keys = auth.take_digests()
    bundle.resolve(settings.model)
    if not ray.is_initialized():
        proxy.prepare()
    cluster.connect(scale or Scale(progress=False))
    http: dict[str, Any] = {
        "host": host,
        "port": port,
        "keep_alive_timeout_s": 30,
        "request_timeout_s": settings.limits.seconds + 30,
    }
    serve.start(http_options=http, logging_config=_QUIET)
    try:
        serve.run(_application(settings, keys), name=NAME, route_prefix="/", logging_config=_QUIET)
    except RuntimeError as error:
        raise _not_started() from error


def _not_started() -> Exception:
    """What ends a service whose replicas fail while they start: Serve's own error says only of
    which deployment they are.
    """
    application = serve.status().applications.get(NAME)
    deployments = application.deployments.values() if application else ()
    text = "\n".join(deployment.message for deployment in deployments if deployment.message)
    if _LOST in text:
        return UserError(
            "the service does not start: its processes are lost while they start, most often for lack of "
            "memory; give it more, or fewer replicas (predictor.min_replicas, ingress.min_replicas)"
        )
    return RuntimeError(f"the service does not start: {text}")


def stop(seconds: float = DRAIN_SECONDS) -> int:
    """Refuses further requests, waits at most `seconds` for those in flight, and ends the service;
    returns how many were lost.
    """
    lost = 0
    with suppress(RayError, RayServeException, TimeoutError):
        ingress = serve.get_app_handle(NAME)
        lost = sum(ingress.broadcast("drain", seconds).results(timeout_s=seconds + 10))
    serve.shutdown()  # type: ignore[no-untyped-call]
    return lost


def _on_gpu(settings: Service) -> bool:
    has_gpu = ray.is_initialized() and ray.cluster_resources().get("GPU", 0) > 0  # type: ignore[no-untyped-call]
    if settings.gpu is True and not has_gpu:
        raise UserError("gpu=true: the cluster has no GPU; use gpu=auto")
    return bool(has_gpu and settings.gpu is not False)


def _scaling(replicas: Replicas) -> dict[str, Any]:
    if replicas.min_replicas == replicas.max_replicas:
        return {"num_replicas": replicas.min_replicas}
    return {"autoscaling_config": replicas.model_dump(exclude={"cpus"})}
