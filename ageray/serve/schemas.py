"""The JSON of requests and answers, field by field; also the source of the OpenAPI description."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class ApiModel(BaseModel):
    """Attribute docstrings become descriptions; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Face(ApiModel):
    """A face, numbered from the left of its image."""

    face: int
    """Number, from 0."""
    box: list[float] | None = None
    """x0, y0, x1, y1 in pixels of the upright image."""
    landmarks: list[list[float]] | None = None
    """Viewer-left eye, viewer-right eye, nose tip, left and right mouth corner: x, y in pixels
    of the upright image."""
    detection: float | None = None
    """Score of the detector, 0 to 1."""
    age: float | None = None
    """Years."""
    age_low: float | None = None
    """Lower end of the 90 % interval, in years."""
    age_high: float | None = None
    """Upper end of the 90 % interval, in years."""
    posterior: list[float] | None = None
    """On request: probability of each bin of `GET /v1/model`'s `bins`, before calibration."""
    error: str | None = None
    """Why this face has no age; `unsure: ...` where an age would be a guess."""
    quality: float | None = None
    """How good the picture of this face is, 0 to 1: 0.5 doubles the interval."""
    unusual: float | None = None
    """Distance from the faces of training; above 1 is unusual, and widens the interval."""
    over_18: float | None = None
    """Probability of being 18 or older."""
    over_25: float | None = None
    """Probability of being 25 or older."""


class Image(ApiModel):
    """An image of the request, in its order."""

    name: str
    """As the request named it."""
    width: int | None = None
    """Pixels of the upright image; null where it could not be read."""
    height: int | None = None
    """Pixels of the upright image."""
    faces: list[Face] = []
    """From left to right."""
    error: str | None = None
    """Why there is no face: `no face found`, `cannot decode: ...`, `too large: ...`."""


class ModelName(ApiModel):
    """Which model answered."""

    name: str
    """As the service was started with."""
    identity: str
    """Changes whenever the weights, the settings or the calibration do."""


class Scores(ApiModel):
    """The answer to `POST /v1/score`."""

    model: ModelName
    """Which model answered."""
    images: list[Image]
    """One for each image of the request."""


class Bins(ApiModel):
    """The age that bin k of a posterior stands for: scale * (first + k) + shift years."""

    first: int
    """First bin."""
    count: int
    """Number of bins, one a year."""
    scale: float
    """Of the calibration."""
    shift: float
    """Of the calibration, in years."""


class Bounds(ApiModel):
    """Limits of a request."""

    body_mib: float
    """Largest body in MiB."""
    images: int
    """Most images."""
    megapixels: float
    """Largest image, width x height in millions."""


class Model(ApiModel):
    """The answer to `GET /v1/model`."""

    name: str
    """As the service was started with."""
    identity: str
    """Changes whenever the weights, the settings or the calibration do."""
    network: str
    """Kind of network."""
    bins: Bins
    """The ages of the posterior's bins."""
    limits: Bounds
    """Limits of a request."""
    batches: bool
    """Whether jobs can be started."""
    card: dict[str, Any]
    """Training data and its terms, test figures, and what the model is not good for."""


class Health(ApiModel):
    """The answer to `GET /healthz`."""

    status: Literal["ok"]
    """The model gave an age for a blank face."""
    identity: str
    """Of that model."""


class BatchRequest(ApiModel):
    """The body of `POST /v1/batches`."""

    input: str
    """Folder, manifest, tar or table below one of the service's input prefixes."""
    out: str
    """Folder to write, below one of the service's output prefixes."""
    detect: Literal["auto", "always", "never"] = "auto"
    """Where to look for faces, as `ageray score --detect`."""
    posterior: bool = False
    """Whether to add the posteriors to the table."""
    fresh: bool = False
    """Whether to replace an earlier result."""


class Progress(ApiModel):
    """The progress of a job."""

    done: int
    """Images that are scored."""
    total: int | None = None
    """Images in all; null until they are counted."""
    faces: int = 0
    """Faces in them."""
    errors: int = 0
    """Images without a face, whatever the reason."""
    images_per_second: float | None = None
    """Images a second."""
    seconds_left: float | None = None
    """Seconds to the end; null while they cannot be estimated."""


class Batch(BatchRequest):
    """A job and its state."""

    id: str
    """Name of the job."""
    state: Literal["waiting", "running", "done", "failed", "cancelled"]
    """`waiting`: in the queue."""
    submitted: str
    """Time, UTC."""
    started: str | None = None
    """Time, UTC."""
    ended: str | None = None
    """Time, UTC."""
    progress: Progress | None = None
    """Null until the job reports for the first time."""
    message: str | None = None
    """Why it failed."""
    files: list[str] = []
    """Names of the result's files, once it is done: the page `_report.html`, the table, the
    summary. `GET /v1/batches/ID/files/NAME` has them."""


class BatchList(ApiModel):
    """The answer to `GET /v1/batches`."""

    inputs: list[str]
    """Prefixes of inputs."""
    outputs: list[str]
    """Prefixes of results."""
    batches: list[Batch]
    """The newest first."""


class Problem(ApiModel):
    """What went wrong."""

    code: str
    """For programs: `too_large`, `busy`, `unauthorized`, ..."""
    message: str
    """For people, in one line."""


class ErrorBody(ApiModel):
    """Body of every answer of 400 and above."""

    error: Problem
    """What went wrong."""
