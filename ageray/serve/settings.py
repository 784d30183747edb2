"""The settings of the service: `ageray serve` takes them as key=value, `configs/serve.yaml` as
`args`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ageray.experiment.strict import Count, Positive, Strict


class Limits(Strict):
    """Limits of one request. What is larger is refused before it is read or decoded."""

    body_mib: Positive = 64
    """Largest body of a request in MiB (413)."""
    images: Count = 64
    """Most images of a request (413)."""
    megapixels: Annotated[float, Field(gt=0, le=100)] = 50
    """Largest image by its header, width x height in millions. A larger one is not decoded and
    has an error of its own in the answer."""
    requests: Count = 16
    """Scoring requests that one ingress replica handles at once; the next gets 503. Times
    `body_mib`, this bounds the memory of the replica."""
    retry_after_s: Count = 1
    """Value of the header Retry-After of a 503, in seconds."""
    seconds: Positive = 120
    """Longest time of an answer in seconds (504)."""


class Replicas(Strict):
    """Replicas of a deployment. Serve scales between two different numbers by load."""

    min_replicas: Count = 1
    """Replicas without load."""
    max_replicas: Count = 1
    """Replicas at full load."""
    target_ongoing_requests: Positive = 4
    """Concurrent requests of a replica that scaling aims at."""
    cpus: Annotated[float, Field(ge=0)] = 1
    """Logical CPUs that Ray reserves for a replica."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                "min_replicas must not be above max_replicas; "
                f"got {self.min_replicas} and {self.max_replicas}"
            )
        return self


class Batches(Strict):
    """Scoring jobs that requests may start. Without prefixes there are none."""

    inputs: tuple[str, ...] = ()
    """Folders or urls (`s3://bucket/photos`) below which an input must lie."""
    outputs: tuple[str, ...] = ()
    """Folders or urls below which a result must lie."""
    at_once: Count = 1
    """Jobs that run at the same time; others wait."""
    waiting: Count = 100
    """Jobs that may wait; the next gets 503."""
    records: str = "~/.cache/ageray/batches"
    """Local folder with a record and a log of every job. A restarted service reads its jobs there;
    services with other prefixes or API keys have their own."""
    overrides: tuple[str, ...] = ()
    """Settings of every job, as on the command line of `ageray score`: `scale.score_workers=2`."""


class Service(Strict):
    """All settings of the service."""

    model: str = "zoo:default"
    """zoo:NAME, a bundle or a run folder."""
    gpu: bool | Literal["auto"] = "auto"
    """Whether each replica of the model takes a GPU. `auto` takes one if the cluster has any."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Compute threads of a model replica on CPUs; 0 means all cores of its machine."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """Arithmetic of the model. `auto`, as in `ageray score`, takes bf16 if the model was trained
    with it and the hardware has instructions for it."""
    max_batch_size: Count = 32
    """Most faces of a forward pass; they may come from several requests."""
    batch_wait_timeout_ms: Annotated[float, Field(ge=0, le=1000)] = 5
    """Longest time that a batch waits for more faces, in milliseconds."""
    decoders: Annotated[int, Field(ge=0)] = 0
    """Threads of an ingress replica that decode and detect; 0 means the cores of its machine."""
    ingress: Replicas = Replicas(target_ongoing_requests=8)
    """Replicas of the deployment that speaks HTTP, decodes photos and finds faces."""
    predictor: Replicas = Replicas(target_ongoing_requests=16)
    """Replicas of the deployment that holds the model."""
    limits: Limits = Limits()
    """Limits of a request."""
    batches: Batches = Batches()
    """Scoring jobs over HTTP."""
