"""The deployment that speaks HTTP. Its threads decode photos and find faces; `AgeModel` gives
the ages."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import cv2
import pyarrow as pa
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError
from ray.serve.handle import DeploymentHandle

from ageray import bundle, schema
from ageray.experiment import Align, Detect
from ageray.faces.images import upright_size
from ageray.machine.cpus import usable_cpus
from ageray.models.decode import bins
from ageray.serve import routes, schemas
from ageray.serve.errors import ApiError
from ageray.serve.metrics import Metrics
from ageray.serve.model import blank_face
from ageray.serve.settings import Service
from ageray.serve.traffic import Traffic
from ageray.serve.uploads import Photo
from ageray.stages.columns import DETECTED_SCHEMA
from ageray.stages.detect import Item, rows_of

_OTHER_BODIES = 16  # of requests that do not score
_GROUP = 4  # images of a task of a thread: the model starts on them while others are decoded
_SHARE_SECONDS = 5.0  # between two reports of a replica's counters
_HEALTH_SECONDS = 1.0  # how long an answer about health is reused


@serve.deployment
@serve.ingress()
class Ingress:
    """`routes.Engine` on this cluster."""

    def __init__(
        self,
        settings: Service,
        keys: tuple[bytes, ...],
        model: DeploymentHandle[Any],
        batch_jobs: DeploymentHandle[Any],
    ) -> None:
        self._settings, self._keys, self._model, self.batch_jobs = settings, keys, model, batch_jobs
        self.traffic = Traffic(settings.limits.requests + _OTHER_BODIES)
        self._bundle = bundle.load(settings.model)
        threads = settings.decoders or usable_cpus()
        cv2.setNumThreads(1)  # the pool below has a thread a core
        self._pool = ThreadPoolExecutor(threads)
        # canvases wait for the model in memory: bounds how many groups of images have some
        self._groups_in_memory = asyncio.Semaphore(2 * threads)
        self._blank = blank_face(self._bundle.experiment.align)
        self.metrics, self._shared_at = Metrics(), 0.0
        self._healthy_at = -_HEALTH_SECONDS
        self._health_lock = asyncio.Lock()

    def __serve_build_asgi_app__(self) -> FastAPI:
        return routes.build(self, self._settings, self._keys)

    def about(self) -> schemas.Model:
        """The answer to `GET /v1/model`."""
        loaded, limits = self._bundle, self._settings.limits
        ages, line = bins(loaded.experiment.model), loaded.calibration
        batches = self._settings.batches
        name = self._settings.model
        if not name.startswith("zoo:"):
            name = str(loaded.card.get("name", "model"))
        return schemas.Model(
            name=name,
            identity=loaded.identity,
            network=loaded.experiment.model.name,
            bins=schemas.Bins(first=int(ages[0]), count=len(ages), scale=line.scale, shift=line.shift),
            limits=schemas.Bounds(
                body_mib=limits.body_mib, images=limits.images, megapixels=limits.megapixels
            ),
            batches=bool(batches.inputs and batches.outputs),
            card=loaded.card,
        )

    async def check(self) -> None:
        """Has the model answer for a blank face. Raises ApiError (503) if it does not."""
        async with self._health_lock:  # concurrent requests share one pass
            if time.monotonic() - self._healthy_at < _HEALTH_SECONDS:
                return
            try:
                async with asyncio.timeout(self._settings.limits.seconds):
                    await self._model.age.remote(self._blank)
            except (RayError, TimeoutError):
                raise ApiError(503, "unhealthy", "the model does not answer") from None
            self._healthy_at = time.monotonic()

    async def drain(self, seconds: float) -> int:
        """Refuses further requests; waits for those in flight, and returns how many are left."""
        return await self.traffic.drain(seconds)

    async def all_metrics(self) -> dict[str, float]:
        """The counters of all replicas, added up by `BatchJobs`."""
        self._shared_at = time.monotonic()
        replica = str(serve.get_replica_context().replica_id)
        sums: dict[str, float] = await self.batch_jobs.metrics.remote(replica, self.metrics.values())
        return sums

    async def _share_metrics(self) -> None:
        """Gives `BatchJobs` this replica's counters, for a request for them that reaches another
        replica. A failure counts nowhere: the next request tries again."""
        if time.monotonic() - self._shared_at > _SHARE_SECONDS:
            with suppress(RayError):
                await self.all_metrics()

    async def score(self, photos: list[Photo]) -> list[schemas.Image]:
        """The faces of each image with their ages and posteriors.

        When the caller gives up (504), its threads stop after the image that they are at.
        """
        groups = [photos[start : start + _GROUP] for start in range(0, len(photos), _GROUP)]
        given_up = threading.Event()
        try:
            scored = await asyncio.gather(*(self._score_group(group, given_up) for group in groups))
        except BaseException:
            given_up.set()
            raise
        self._sharing = asyncio.create_task(self._share_metrics())
        return list(itertools.chain.from_iterable(scored))

    async def _score_group(self, photos: list[Photo], given_up: threading.Event) -> list[schemas.Image]:
        align, detect = self._bundle.experiment.align, self._bundle.experiment.data.detect
        async with self._groups_in_memory:
            loop = asyncio.get_running_loop()
            images, faces = await loop.run_in_executor(
                self._pool, find_faces, photos, align, detect, self._settings.limits.megapixels, given_up
            )
            size = self._settings.max_batch_size
            parts = [faces.slice(start, size) for start in range(0, faces.num_rows, size)]
            tables = await asyncio.gather(*(self._model.age.remote(part) for part in parts))
        for table in tables:
            for row in table.to_pylist():
                images[int(row["image"])].faces.append(_face(row))
        return images


def find_faces(
    photos: list[Photo], align: Align, detect: Detect, megapixels: float, given_up: threading.Event
) -> tuple[list[schemas.Image], pa.Table]:
    """The images of the answer, still without faces, and all faces as rows of DETECTED_SCHEMA.

    The column `image` is the number of the image. `megapixels` bounds the size of an image by its
    header. given_up: when it is set, the rest is left undone.
    """
    images, faces = [], []
    for number, photo in enumerate(photos):
        if given_up.is_set():
            break
        size = upright_size(photo.content)
        width, height = size or (None, None)
        image = schemas.Image(name=photo.name, width=width, height=height)
        images.append(image)
        if size is not None and size[0] * size[1] > megapixels * 1e6:
            image.error = f"too large: {width}x{height} is over {megapixels:g} megapixels"
            continue
        rows = rows_of(Item(str(number), photo.content), align, detect, "auto")
        if rows[0]["face"] == -1:
            image.error = rows[0]["error"]
        else:
            faces += rows
    return images, pa.Table.from_pylist(faces, schema=DETECTED_SCHEMA)


def _face(row: dict[str, Any]) -> schemas.Face:
    points = row["landmarks"]
    fields = ("face", "box", "detection", "error", "posterior", *schema.OF_THE_MODEL)
    pairs = None
    if points is not None:
        pairs = [list(pair) for pair in zip(points[::2], points[1::2], strict=True)]
    return schemas.Face.model_construct(**{name: row[name] for name in fields}, landmarks=pairs)
