"""The service's settings: what `jobs.serve` takes as key=value and `configs/serve.yaml` as `args`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from ageray.errors import UserError
from ageray.experiment.strict import Count, Positive, Strict


class Limits(Strict):
    """What one request may bring; more is refused before it is read or decoded."""

    body_mib: Positive = 64
    """Body of a request in MiB (413)."""
    images: Count = 64
    """Images of a request (413)."""
    megapixels: Annotated[float, Field(gt=0, le=100)] = 50
    """Width x height of an image in millions, by its header; a larger one gets an error of its own in the answer and is not decoded."""
    requests: Count = 16
    """Scoring requests that one door works on at once; it answers 503 to the next. Times `body_mib`, this bounds its memory."""
    retry_after_s: Count = 1
    """What the header Retry-After of a 503 says, in seconds."""
    seconds: Positive = 120
    """Time that an answer may take (504)."""


class Replicas(Strict):
    """How many copies of a part; between two different numbers Serve scales by load."""

    least: Count = 1
    """Copies without load."""
    most: Count = 1
    """Copies at full load."""
    ongoing: Positive = 4
    """Load of a copy, in requests under way, that scaling aims at."""
    cpus: Annotated[float, Field(ge=0)] = 1
    """Logical CPUs that Ray reserves for a copy."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.least > self.most:
            raise ValueError(f"least must not be above most; got {self.least} and {self.most}")
        return self


class Batches(Strict):
    """Scoring jobs that may be started over HTTP; without prefixes there are none."""

    inputs: tuple[str, ...] = ()
    """Folders or urls (`s3://bucket/photos`) below which an input must lie."""
    outputs: tuple[str, ...] = ()
    """Folders or urls below which a result must lie."""
    at_once: Count = 1
    """Jobs that run at the same time; others wait their turn."""
    waiting: Count = 100
    """Jobs that may wait; the next is answered 503."""
    records: str = "~/.cache/ageray/batches"
    """Local folder for a record and a log of every job: a service that starts again finds its jobs there."""
    words: tuple[str, ...] = ()
    """Settings that every job gets, as on its command line: `scale.score_workers=2`."""


class Service(Strict):
    """The whole service."""

    model: str = "zoo:default"
    """zoo:NAME, a bundle or a run folder."""
    gpu: bool | Literal["auto"] = "auto"
    """Whether each copy of the model takes a GPU; `auto`: where the cluster has any."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Compute threads of a copy of the model on CPUs; 0 means all cores of its machine."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """Arithmetic of the model; `auto` as `jobs.score` does."""
    faces_a_batch: Count = 32
    """Most faces of a forward pass, whichever requests they came with."""
    wait_ms: Annotated[float, Field(ge=0, le=1000)] = 5
    """How long a batch waits for more faces, in milliseconds."""
    decoders: Annotated[int, Field(ge=0)] = 0
    """Threads of a door that decode and detect; 0 means the cores of its machine."""
    doors: Replicas = Replicas(ongoing=8)
    """Copies of the part that speaks HTTP, decodes and detects."""
    models: Replicas = Replicas(ongoing=16)
    """Copies of the part that holds the model."""
    limits: Limits = Limits()
    """What a request may bring."""
    batches: Batches = Batches()
    """Jobs over HTTP."""


def from_words(words: Sequence[str], **fixed: Any) -> Service:
    """The settings of `a.b=value` words, values as in YAML. Raises UserError that names every mistake."""
    values: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise UserError(f"{word}: neither an option nor key=value; see --help")
        here = values
        *parents, last = key.split(".")
        for name in parents:
            here = here.setdefault(name, {})
            if not isinstance(here, dict):
                raise UserError(f"{word}: {name} holds a value already; give it once")
        try:
            here[last] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UserError(f"{word}: the value is not YAML; put it in quotes") from None
    try:
        return Service.model_validate({**values, **fixed})
    except ValidationError as error:
        found = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise UserError("; ".join(found)) from None
