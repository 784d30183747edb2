"""The service as Serve sees it: which parts, how many copies, and what each takes."""

# no `from __future__ import annotations`: Serve looks at the builder's annotation to make settings of a file's `args`

from typing import Any

import ray
from ray import serve
from ray.serve import Application

from ageray import bundle, cluster
from ageray.errors import UserError
from ageray.experiment import Scale
from ageray.serve import auth
from ageray.serve.batches import BatchJobs
from ageray.serve.ingress import Ingress
from ageray.serve.model import AgeModel
from ageray.serve.settings import Replicas, Service

NAME = "ageray"
_BESIDES = 32  # requests of a door besides those that score: pages, health, batches


def app(settings: Service) -> Application:
    """The application; API keys are taken from the environment of the process that builds it. Raises UserError if there is no such model."""
    settings = settings.model_copy(update={"model": bundle.model_for_workers(settings.model)})
    limits, batch = settings.limits, settings.faces_a_batch
    ages = AgeModel.options(  # type: ignore[attr-defined]
        ray_actor_options={"num_cpus": settings.models.cpus, "num_gpus": int(_on_gpu(settings))},
        # batches never fill if fewer calls may be under way than a batch holds
        max_ongoing_requests=4 * batch,
        health_check_period_s=10,
        health_check_timeout_s=60,
        **_copies(settings.models),
    ).bind(settings)
    scribe = BatchJobs.options(  # type: ignore[attr-defined]
        ray_actor_options={"num_cpus": 0}, max_ongoing_requests=100
    ).bind(settings)
    return Ingress.options(  # type: ignore[attr-defined,no-any-return]
        ray_actor_options={"num_cpus": settings.doors.cpus},
        max_ongoing_requests=limits.requests + _BESIDES,
        max_queued_requests=limits.requests + _BESIDES,
        backpressure_config={"status_code": 503, "retry_after_s": limits.retry_after_s},
        health_check_timeout_s=60,
        **_copies(settings.doors),
    ).bind(settings, auth.digests(), ages, scribe)


def start(settings: Service, host: str, port: int, scale: Scale | None = None) -> None:
    """Serves on `host` and `port`, on the cluster of RAY_ADDRESS or on a Ray that it starts, and returns when the model answers.

    Raises UserError for a host that others reach without keys, a model that is none, a port that is taken.
    """
    auth.check_host(host)
    bundle.resolve(settings.model)
    cluster.connect(scale or Scale(progress=False))
    http: dict[str, Any] = {
        "host": host,
        "port": port,
        "keep_alive_timeout_s": 30,
        "request_timeout_s": settings.limits.seconds + 30,
    }
    serve.start(http_options=http, logging_config={"log_level": "WARNING", "enable_access_log": False})
    quiet = {"log_level": "WARNING", "enable_access_log": False}
    serve.run(app(settings), name=NAME, route_prefix="/", logging_config=quiet)


def _on_gpu(settings: Service) -> bool:
    there = ray.is_initialized() and ray.cluster_resources().get("GPU", 0) > 0  # type: ignore[no-untyped-call]
    if settings.gpu is True and not there:
        raise UserError("gpu=true: the cluster has no GPU; use gpu=auto")
    return bool(there and settings.gpu is not False)


def _copies(replicas: Replicas) -> dict[str, Any]:
    if replicas.least == replicas.most:
        return {"num_replicas": replicas.least}
    scaling = {
        "min_replicas": replicas.least,
        "max_replicas": replicas.most,
        "target_ongoing_requests": replicas.ongoing,
    }
    return {"autoscaling_config": scaling}
