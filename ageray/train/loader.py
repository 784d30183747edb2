"""A worker's faces, streamed by Ray Data: its part of every training batch in the epoch's order, its part of the other sets.

Every worker reads the shards and decodes only its own faces, so that nothing is decoded twice and no face is lost, however many workers there
are. Reading is what is done once a worker.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import ray.data
import ray.train
import torch
from numpy.typing import NDArray
from ray.data import ExecutionResources

from ageray.data import row_index
from ageray.data.stream import UsableBatches, canvases, face_rows
from ageray.distributed import rank_and_world
from ageray.errors import UserError
from ageray.experiment import Align, Experiment
from ageray.faces.align import align_faces
from ageray.faces.augment import maps_ahead
from ageray.faces.canvases import to_tensors
from ageray.train import sampler
from ageray.train.plan import Plan
from ageray.train.prefetch import Prefetcher
from ageray.train.sampler import OrderedBatches
from ageray.train.state import Columns, State

_PREFETCH = 3  # batches made ready ahead
ALIGNER_CPUS = 0.25  # of an aligning actor: little, so that actors never hold the CPUs that decode
_STORE_SHARE = 0.4  # of the object store for the streams of all workers, one at a time each


def sources(experiment: Experiment, plan: Plan) -> dict[str, ray.data.Dataset]:
    """The rows of every folder of shards that the run reads, by folder."""
    folders = set(plan.folders())
    for stage in experiment.train.stages:
        folders |= set(plan.folders(stage))
    return {folder: face_rows(folder) for folder in folders}


@dataclass
class Streams:
    """What one worker reads: `rows` are the sources, of which `plan.faces` says which face is in which stream."""

    experiment: Experiment
    plan: Plan
    rows: dict[str, ray.data.Dataset]

    def __post_init__(self) -> None:
        world = rank_and_world()[1]
        store = ray.cluster_resources().get("object_store_memory", 0)  # type: ignore[no-untyped-call]
        for dataset in self.rows.values():
            dataset.context.execution_options.resource_limits = ExecutionResources.for_limits(
                object_store_memory=store * _STORE_SHARE / world
            )

    def training(self, state: State) -> Training:
        """The stage's training faces in this epoch's order, in full batches, from the first one on that `state` has not had."""
        config, faces = self.experiment.train, self.plan.faces[f"stage-{state.stage}"]
        stage = config.stages[state.stage]
        rows_N = sampler.shuffled(
            faces,
            config.shuffle,
            (config.seed, state.epoch),
            config.balance == "resample",
            config.balance_power,
            (1.0,) if stage.shards else [each.weight for each in self.plan.sets],
        )
        rows_SB = sampler.share(rows_N, config.batch_size, *rank_and_world(), first=state.partial.steps)
        more: dict[str, NDArray[np.float32]] = {}
        if config.balance == "weights":
            more["weight"] = sampler.weights(faces.age, config.balance_power).astype(np.float32)
        if faces.age_std is not None:
            more["age_std"] = faces.age_std
        streams = self._streams(self.plan.folders(stage), faces, rows_SB)
        if self.experiment.align.placement == "actors":
            # every place of a face has a map of its own, so places take the part of faces from here on
            more = {name: values[rows_SB.reshape(-1)] for name, values in more.items()}
            streams = [self._aligned(streams[0], rows_SB, state)]  # data.sets are refused by the plan
            rows_SB = np.arange(rows_SB.size).reshape(rows_SB.shape)
        blocks = [
            stream.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=_PREFETCH)
            for stream in streams
        ]
        ordered = OrderedBatches(blocks, rows_SB, more, faces.starts)
        return Training(ordered, Prefetcher(ordered, _PREFETCH, state.device))

    def _aligned(self, faces: ray.data.Dataset, rows_SB: row_index.Rows, state: State) -> ray.data.Dataset:
        """The faces with the maps that the worker would draw, in an actor of this worker's own."""
        align, augment = self.experiment.align, self.experiment.train.augment
        steps, count = rows_SB.shape
        maps = maps_ahead(steps, count, align.size, augment, state.generator, *rank_and_world())
        aligned: ray.data.Dataset = faces.map_batches(
            Aligner,
            fn_constructor_args=(
                align.model_dump(mode="json"),
                rows_SB.reshape(-1),
                maps.flatten(0, 1).numpy(),
            ),
            batch_size=self.experiment.scale.decode_batch,
            compute=ray.data.ActorPoolStrategy(size=1),
            num_cpus=ALIGNER_CPUS,
            num_gpus=self.experiment.scale.align_gpus,
        )
        return aligned

    def whole(self, part: str, most: int | None = None) -> UsableBatches:
        """This worker's share of a part ('val', 'train') or of its first `most` faces, each face once, in the order of the sets and their shards,
        with its number `row` and that of its set, `set`."""
        rank, world = rank_and_world()
        faces = self.plan.faces[part]
        rows = np.arange(min(len(faces), most or len(faces)))[rank::world]
        streams = self._streams(self.plan.folders(), faces, rows)
        return UsableBatches(self._of_sets(streams))

    def _of_sets(self, streams: list[ray.data.Dataset]) -> Iterator[Columns]:
        """The batches of one stream after the other, with the column `set`."""
        size = self.experiment.train.batch_size
        for number, stream in enumerate(streams):
            for batch in stream.iter_batches(
                batch_size=size, batch_format="numpy", prefetch_batches=_PREFETCH
            ):
                yield {**batch, "set": np.full(len(batch["age"]), number)}

    def _streams(
        self, folders: Sequence[str], faces: row_index.RowIndex, rows: row_index.Rows
    ) -> list[ray.data.Dataset]:
        """The canvases of these rows, a stream a set."""
        set_N = faces.set_of(rows.reshape(-1))
        return [
            self._canvases(folder, faces.wanted(rows.reshape(-1)[set_N == number]))
            for number, folder in enumerate(folders)
        ]

    def _canvases(self, shards: str, wanted: row_index.RowLookup) -> ray.data.Dataset:
        return canvases(
            self.rows[shards], self.experiment.align, self.experiment.scale.decode_batch, wanted=wanted
        )


class Aligner:
    """An actor of Ray Data: canvases to aligned faces, (S, S, 3) float32 before any change of colour, once for each place of an epoch at which a
    face stands. `row` is that place from there on."""

    def __init__(self, align: dict[str, Any], row_P: row_index.Rows, map_P: NDArray[np.float32]) -> None:
        """row_P, map_P: the face and the map (2, 3) of each of P places."""
        self._align, self._map = Align.model_validate(align), map_P
        self._place = np.argsort(row_P, kind="stable")
        self._row = row_P[self._place]
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @torch.inference_mode()
    def __call__(self, faces: Columns) -> Columns:
        """Columns of `canvases` to the same without `canvas` and `box`, with `aligned`."""
        first: row_index.Rows = np.asarray(np.searchsorted(self._row, faces["row"], "left"))
        end: row_index.Rows = np.asarray(np.searchsorted(self._row, faces["row"], "right"))
        taken = np.repeat(np.arange(len(faces["row"])), end - first)
        place = self._place[first[taken] + np.arange(len(taken)) - np.searchsorted(taken, taken)]
        batch = to_tensors({name: faces[name][taken] for name in ("canvas", "points", "box")}, self._device)
        maps = torch.from_numpy(self._map[place]).to(self._device)
        aligned, points = align_faces(batch["canvas"], batch["points"], batch["box"], self._align, maps)
        rest = {
            name: values[taken] for name, values in faces.items() if name not in ("canvas", "points", "box")
        }
        return rest | {
            "aligned": aligned.permute(0, 2, 3, 1).float().cpu().numpy(),
            "points": points.cpu().numpy(),
            "row": place,
        }


@dataclass
class Training:
    """An epoch's batches, to be read once, and what became of them: `ordered.skipped`, `batches.waited`."""

    ordered: OrderedBatches
    batches: Prefetcher


def no_face(shards: Any, what: str, skipped: list[tuple[str, str]]) -> UserError:
    """The answer where no face can be used."""
    key, reason = skipped[0] if skipped else ("", "no rows")
    return UserError(
        f"data.shards={shards}: no training face can be used{what}; the first of {len(skipped)}: {key}: {reason}"
    )


def threads(experiment: Experiment) -> int:
    """Compute threads of a worker: all cores of a machine on which it is alone, else the CPUs that Ray keeps for it."""
    alone = ray.train.get_context().get_local_world_size() == 1
    return experiment.scale.threads or (
        (os.cpu_count() or 1) if alone else max(1, int(experiment.scale.cpus_per_worker))
    )
