"""The part that speaks HTTP. Photos are decoded and their faces found in its threads; the model answers elsewhere."""

from __future__ import annotations

import asyncio
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import pyarrow as pa
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError
from ray.serve.handle import DeploymentHandle

from ageray import bundle
from ageray.experiment import Align, Detect
from ageray.faces.images import upright_size
from ageray.models.decode import bins
from ageray.serve import routes, schemas
from ageray.serve.errors import ApiError
from ageray.serve.model import blank_face
from ageray.serve.settings import Service
from ageray.serve.uploads import Photo
from ageray.stages.detect import DETECTED_SCHEMA, Item, rows_of

_GROUP = 4  # images that a thread takes at once: the model can start while others are still being decoded
_FRESH = 1.0  # seconds that an answer about health stays good


@serve.deployment
@serve.ingress()
class Ingress:
    """`web.Engine` on this cluster."""

    def __init__(
        self,
        settings: Service,
        keys: tuple[bytes, ...],
        ages: DeploymentHandle[Any],
        scribe: DeploymentHandle[Any],
    ) -> None:
        self._settings, self._keys, self._ages, self.scribe = settings, keys, ages, scribe
        self._bundle = bundle.load(settings.model)
        threads = settings.decoders or os.cpu_count() or 1
        cv2.setNumThreads(1)  # as many of these run at once as there are threads
        self._hands = ThreadPoolExecutor(threads)
        # Canvases wait for the model in memory: a door holds those of so many images.
        self._room = asyncio.Semaphore(2 * threads)
        self._blank = blank_face(self._bundle.experiment.align)
        self._healthy = -_FRESH
        self._checking = asyncio.Lock()

    def __serve_build_asgi_app__(self) -> FastAPI:
        return routes.build(self, self._settings, self._keys)

    def about(self) -> schemas.Model:
        """The model and the limits."""
        loaded, limits = self._bundle, self._settings.limits
        ages, line = bins(loaded.experiment.model), loaded.calibration
        batches = self._settings.batches
        return schemas.Model(
            name=self._settings.model
            if self._settings.model.startswith("zoo:")
            else str(loaded.card.get("name", "model")),
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
        async with self._checking:  # many who ask at once share one pass
            if time.monotonic() - self._healthy < _FRESH:
                return
            try:
                async with asyncio.timeout(self._settings.limits.seconds):
                    await self._ages.age.remote(self._blank)
            except (RayError, TimeoutError):
                raise ApiError(503, "unhealthy", "the model does not answer") from None
            self._healthy = time.monotonic()

    async def score(self, photos: list[Photo]) -> list[schemas.Image]:
        """The faces of each image with their ages and posteriors."""
        groups = [photos[start : start + _GROUP] for start in range(0, len(photos), _GROUP)]
        done = await asyncio.gather(*map(self._group, groups))
        return [image for group in done for image in group]

    async def _group(self, photos: list[Photo]) -> list[schemas.Image]:
        align, detect = self._bundle.experiment.align, self._bundle.experiment.data.detect
        async with self._room:
            loop = asyncio.get_running_loop()
            images, found = await loop.run_in_executor(
                self._hands, find, photos, align, detect, self._settings.limits.megapixels
            )
            size = self._settings.faces_a_batch
            parts = [found.slice(start, size) for start in range(0, found.num_rows, size)]
            aged = await asyncio.gather(*(self._ages.age.remote(part) for part in parts))
        for table in aged:
            for row in table.to_pylist():
                images[int(row["image"])].faces.append(_face(row))
        return images


def find(
    photos: list[Photo], align: Align, detect: Detect, megapixels: float
) -> tuple[list[schemas.Image], pa.Table]:
    """Each image without its faces, and the rows of DETECTED_SCHEMA of all their faces; `image` there is the image's number."""
    images, faces = [], []
    for number, photo in enumerate(photos):
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
    kept = ("face", "box", "detection", "age", "age_low", "age_high", "posterior", "error")
    pairs = None if points is None else [list(pair) for pair in zip(points[::2], points[1::2], strict=True)]
    return schemas.Face.model_construct(**{name: row[name] for name in kept}, landmarks=pairs)
