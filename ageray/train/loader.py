"""The faces of one training worker, streamed by Ray Data: training batches in the epoch's order,
and the worker's share of the validation and gallery faces.

Every worker reads all shards but decodes only its own faces. So no face is decoded twice or lost,
for any number of workers; reading alone is repeated by each worker.

Shape letters: N faces of an epoch, S steps, B faces of this worker in a step, P = S x B places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
import ray.data
import ray.train
import torch
from numpy.typing import NDArray
from ray.data import ExecutionResources

from ageray.data.row_index import RowIndex, RowLookup, Rows
from ageray.data.stream import UsableBatches, canvases, face_rows
from ageray.distributed import rank_and_world
from ageray.errors import UserError
from ageray.experiment import Align, Experiment
from ageray.faces.align import align_faces
from ageray.faces.augment import upcoming_maps
from ageray.faces.canvases import canvas_side, to_tensors
from ageray.machine.cpus import usable_cpus
from ageray.machine.memory import available_bytes
from ageray.train import sampler, teacher
from ageray.train.batches import LABEL_BYTES, CachedBatches, CanvasCache, Prefetcher
from ageray.train.feature_store import FeatureStore
from ageray.train.plan import Plan
from ageray.train.sampler import OrderedBatches
from ageray.train.state import Columns, State
from ageray.train.teacher import Teacher

_PREFETCH = 3  # batches
ALIGNER_CPUS = 0.25  # of an aligning actor: little, so that actors leave the CPUs to decoding tasks
_STORE_SHARE = 0.4  # of the object store for the streams of all workers; a worker reads one at a time
_WARPED = ("canvas", "points", "box")
_GPU_SHARE, _CPU_SHARE = 0.6, 0.25  # of the free memory, for decoded faces that stay
_WHOLE = 0.9  # of a part: an epoch that shows so many of its faces decodes all, for those that follow


def sources(experiment: Experiment, plan: Plan) -> dict[str, ray.data.Dataset]:
    """The rows of every folder of shards that the run reads, by folder."""
    folders = set(plan.folders())
    for stage in experiment.train.stages:
        folders |= set(plan.folders(stage))
    return {folder: face_rows(folder) for folder in folders}


@dataclass
class Streams:
    """What one worker reads. rows: see `sources`; plan.faces says which face is in which stream.

    device: of the network. features: in place of the pixels, see `compute_features`.
    """

    experiment: Experiment
    plan: Plan
    rows: dict[str, ray.data.Dataset]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    features: FeatureStore | None = None
    taught: NDArray[np.float16] | None = None
    """The teacher's posterior (N, K) of each training face, see `ask`."""
    caches: dict[str, CanvasCache] = field(default_factory=dict)
    """By name of the part; see `_cache`."""
    rooms: dict[torch.device, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        world = rank_and_world()[1]
        store = ray.cluster_resources().get("object_store_memory", 0)  # type: ignore[no-untyped-call]
        for dataset in self.rows.values():
            dataset.context.execution_options.resource_limits = ExecutionResources.for_limits(
                object_store_memory=store * _STORE_SHARE / world
            )

    def compute_features(self, state: State) -> None:
        """Computes the frozen backbone's features of all faces; from now on every batch has them in
        place of pixels."""
        store = FeatureStore()
        for part in ("train", "val"):
            rows = self._share_rows(part, None)
            batches = self._numbered(self.plan.folders(), self.plan.faces[part], rows)
            store.add(part, state, batches)
        self.features = store

    def ask(self, found: Teacher, report: Callable[[int], None]) -> NDArray[np.float16]:
        """The teacher's posteriors of all training faces, of which every batch then has its own as
        `teacher` (B, K). Decoded faces stay in memory where they fit, for the first epoch. report:
        see `teacher.posteriors`."""
        faces = self.plan.faces["train"]
        batches = self._cached("train", self._share_rows("train", None))
        self.taught = teacher.posteriors(found, batches, len(faces), self.device, report)
        return self.taught

    def training(self, state: State) -> TrainingBatches:
        """This epoch's training batches of the stage, from the first step that is not done yet."""
        config, faces = self.experiment.train, self.plan.faces[f"stage-{state.stage}"]
        stage = config.stages[state.stage]
        seed, resample = (config.seed, state.epoch), config.balance == "resample"
        shares = [1.0]
        if not stage.shards:
            shares = [each.weight for each in self.plan.sets]
        counts = None
        if config.balance == "counts":
            counts = config.balance_count, config.thinned_ages
        window = None if config.shuffle_all else config.shuffle
        rows_N = sampler.shuffled(faces, window, seed, resample, config.balance_power, shares, counts)
        first = state.epoch_progress.steps
        rows_SB = sampler.share(rows_N, config.batch_size, *rank_and_world(), first=first)
        if state.epoch_steps is not None:
            rows_SB = rows_SB[: state.epoch_steps - first]
        more: dict[str, NDArray[Any]] = {}
        if config.balance == "weights":
            more["weight"] = sampler.weights(faces.age, config.balance_power).astype(np.float32)
        if faces.age_std is not None:
            more["age_std"] = faces.age_std
        if self.taught is not None:
            more["teacher"] = self.taught
        if self.features is not None:
            in_memory = OrderedBatches([self.features.blocks("train")], rows_SB, more)
            return TrainingBatches(in_memory, Prefetcher(in_memory, _PREFETCH, state.device))
        folders = self.plan.folders(stage)
        cache = self._cache(stage.shards or "train", faces)
        if config.shuffle_all:
            # of about `train.shuffle` faces; each pass has row numbers of its own
            steps = max(1, config.shuffle // config.batch_size)
            pass_S = np.arange(len(rows_SB)) // steps
            passes = [
                self._passes(number, folder, faces, rows_SB, pass_S, cache)
                for number, folder in enumerate(folders)
            ]
            if cache is not None:
                cached = CachedBatches(passes, rows_SB, cache, more, faces.starts)
                return TrainingBatches(cached, Prefetcher(cached, _PREFETCH, state.device))
            numbers_SB = rows_SB + pass_S[:, None] * len(faces)
            ordered = OrderedBatches(passes, numbers_SB, more, faces.starts, len(faces))
            return TrainingBatches(ordered, Prefetcher(ordered, _PREFETCH, state.device))
        if cache is not None:
            missing = self._to_read(cache, rows_SB)
            read = self._blocks_of(folders, faces, missing)
            cached = CachedBatches(read, rows_SB, cache, more, faces.starts)
            return TrainingBatches(cached, Prefetcher(cached, _PREFETCH, state.device))
        streams = self._streams(folders, faces, rows_SB)
        if self.experiment.align.placement == "actors":
            # a face is warped once for each of its places, so from here on rows are places
            more = {name: values[rows_SB.reshape(-1)] for name, values in more.items()}
            streams = [self._aligned(streams[0], rows_SB, state)]  # the plan refuses data.sets
            rows_SB = np.arange(rows_SB.size).reshape(rows_SB.shape)
        blocks = [_blocks(stream) for stream in streams]
        ordered = OrderedBatches(blocks, rows_SB, more, faces.starts)
        return TrainingBatches(ordered, Prefetcher(ordered, _PREFETCH, state.device))

    def _cache(self, part: str, faces: RowIndex) -> CanvasCache | None:
        """The decoded faces of a part that stay in memory; None if they do not fit beside those of
        the other parts.

        part: `train`, `val`, or the shards of a stage. Whether it fits is decided once.
        """
        experiment = self.experiment
        if experiment.align.placement == "actors" or self.features is not None:
            return None
        if part not in self.caches:
            if part != "val":  # those of a stage before
                self.caches = {name: cache for name, cache in self.caches.items() if name == "val"}
            size = len(faces) * (canvas_side(experiment.align) ** 2 * 3 + LABEL_BYTES)
            for place in dict.fromkeys((self.device, torch.device("cpu"))):
                taken = sum(cache.size for cache in self.caches.values() if cache.device == place)
                if size + taken <= self._room(place):
                    self.caches[part] = CanvasCache(len(faces), size, place)
                    break
        return self.caches.get(part)

    def _room(self, device: torch.device) -> float:
        """Bytes for decoded faces that stay on a device; measured once, before any is kept."""
        if device not in self.rooms:
            given = self.experiment.scale.cache_gib
            if given is not None:
                self.rooms[device] = given * 2**30
            elif device.type == "cuda":
                self.rooms[device] = torch.cuda.mem_get_info(device)[0] * _GPU_SHARE
            else:
                workers = ray.train.get_context().get_local_world_size() if rank_and_world()[1] > 1 else 1
                self.rooms[device] = available_bytes() * _CPU_SHARE / workers
        return self.rooms[device]

    @staticmethod
    def _to_read(cache: CanvasCache, rows_SB: Rows) -> Rows:
        """The rows that this epoch reads: those that it shows and the cache lacks.

        One worker's epoch that shows nearly all faces reads all that are missing, so that the next
        one has to read none.
        """
        shown = np.unique(rows_SB)
        if rank_and_world()[1] == 1 and len(shown) >= _WHOLE * len(cache.present):
            shown = np.arange(len(cache.present))
        return cache.missing(shown)

    def _passes(
        self,
        number: int,
        folder: str,
        faces: RowIndex,
        rows_SB: Rows,
        pass_S: Rows,
        cache: CanvasCache | None = None,
    ) -> Iterator[Columns]:
        """The blocks of one set, for an order in which neighbours come from anywhere.

        pass_S: the pass of each step. For each pass the shards are read once, and its faces alone
        are decoded. A face that a later pass shows again is decoded again, so that no pass holds
        the faces of another; with a cache, no face is decoded twice.
        """
        for current in range(int(pass_S[-1]) + 1 if len(pass_S) else 0):
            rows = np.unique(rows_SB[pass_S == current])
            rows = rows[faces.set_of(rows) == number]
            shift = current * len(faces)
            if cache is not None:
                rows, shift = cache.missing(rows), 0
            if len(rows):
                for block in _blocks(self._canvases(folder, faces.lookup(rows))):
                    yield {**block, "row": block["row"] + shift}

    def _aligned(self, faces: ray.data.Dataset, rows_SB: Rows, state: State) -> ray.data.Dataset:
        """The faces warped by an actor of this worker, with the maps that the worker would draw."""
        align, augment = self.experiment.align, self.experiment.train.augment
        steps, count = rows_SB.shape
        map_SB = upcoming_maps(steps, count, align.size, augment, state.generator, *rank_and_world())
        map_P = map_SB.flatten(0, 1).numpy()
        aligned: ray.data.Dataset = faces.map_batches(
            Aligner,
            fn_constructor_args=(align.model_dump(mode="json"), rows_SB.reshape(-1), map_P),
            batch_size=self.experiment.scale.decode_batch,
            compute=ray.data.ActorPoolStrategy(size=1),
            num_cpus=ALIGNER_CPUS,
            num_gpus=self.experiment.scale.align_gpus,
        )
        return aligned

    def whole(self, part: str, most: int | None = None) -> UsableBatches:
        """This worker's share of a part ('val', 'train'), or of its first `most` faces.

        Each face comes once, in the order of the sets and their shards, with its number in the
        column `row` and that of its set in `set`.
        """
        rows = self._share_rows(part, most)
        if self.features is not None:
            return self.features.whole(part, rows, self.experiment.train.batch_size)
        return UsableBatches(self._cached(part, rows))

    def _cached(self, part: str, rows: Rows) -> Iterator[Columns]:
        """The batches of `_numbered`, from memory where all of them are there."""
        faces, folders = self.plan.faces[part], self.plan.folders()
        cache = self._cache(part, faces)
        if cache is None:
            yield from self._numbered(folders, faces, rows)
            return
        if len(cache.missing(rows)):
            for batch in self._numbered(folders, faces, rows):
                cache.add({name: values for name, values in batch.items() if name != "set"})
                yield batch
            return
        for columns in cache.batches(rows, self.experiment.train.batch_size):
            yield columns | {"set": faces.set_of(columns["row"])}

    def _share_rows(self, part: str, most: int | None) -> Rows:
        rank, world = rank_and_world()
        count = len(self.plan.faces[part])
        return np.arange(min(count, most or count))[rank::world]

    def _numbered(self, folders: Sequence[str], faces: RowIndex, rows: Rows) -> Iterator[Columns]:
        """The batches of these rows, one set after the other, with the column `set`.

        The shards of a set are read no further than to its last row: the first faces of a part lie
        in the first shards.
        """
        size, set_N = self.experiment.train.batch_size, faces.set_of(rows)
        for number, folder in enumerate(folders):
            left = int((set_N == number).sum())
            if not left:
                continue
            stream = self._canvases(folder, faces.lookup(rows[set_N == number]))
            blocks = stream.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=_PREFETCH)
            for batch in _rebatched(blocks, size, left):
                yield {**batch, "set": np.full(len(batch["age"]), number)}

    def _streams(self, folders: Sequence[str], faces: RowIndex, rows: Rows) -> list[ray.data.Dataset]:
        """The canvases of these rows, a stream a set."""
        flat = rows.reshape(-1)
        set_N = faces.set_of(flat)
        streams = []
        for number, folder in enumerate(folders):
            streams.append(self._canvases(folder, faces.lookup(flat[set_N == number])))
        return streams

    def _blocks_of(self, folders: Sequence[str], faces: RowIndex, rows: Rows) -> list[Iterator[Columns]]:
        """The blocks of these rows, an iterator a set; no stream starts for a set without any."""
        set_N = faces.set_of(rows)
        iterators: list[Iterator[Columns]] = []
        for number, folder in enumerate(folders):
            own = rows[set_N == number]
            iterators.append(_blocks(self._canvases(folder, faces.lookup(own))) if len(own) else iter(()))
        return iterators

    def _canvases(self, shards: str, lookup: RowLookup) -> ray.data.Dataset:
        scale = self.experiment.scale
        return canvases(self.rows[shards], self.experiment.align, scale.decode_batch, lookup=lookup)


def _rebatched(blocks: Iterable[Columns], size: int, count: int) -> Iterator[Columns]:
    """The first `count` rows of the blocks, in batches of `size`; no block after them is read."""
    waiting: list[Columns] = []
    rows = 0
    for block in blocks:
        if not len(block["row"]):
            continue
        waiting.append(block)
        rows += len(block["row"])
        count -= len(block["row"])
        if rows < size and count > 0:
            continue
        whole = {name: np.concatenate([each[name] for each in waiting]) for name in block}
        full = rows if count <= 0 else rows // size * size
        for first in range(0, full, size):
            yield {name: values[first : min(first + size, full)] for name, values in whole.items()}
        waiting, rows = [{name: values[full:] for name, values in whole.items()}], rows - full
        if count <= 0:
            return


def _blocks(stream: ray.data.Dataset) -> Iterator[Columns]:
    blocks: Any = stream.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=_PREFETCH)
    yield from blocks


class Aligner:
    """An actor of Ray Data that warps canvases to aligned faces, once for each place."""

    def __init__(self, align: dict[str, Any], row_P: Rows, map_P: NDArray[np.float32]) -> None:
        """row_P, map_P: the face and the map (2, 3) of each of P places."""
        self._align, self._map_P = Align.model_validate(align), map_P
        self._place_P = np.argsort(row_P, kind="stable")
        self._row_P = row_P[self._place_P]
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @torch.inference_mode()
    def __call__(self, faces: Columns) -> Columns:
        """Columns of `ageray.data.stream.canvases` to one row for each place of these faces.

        `aligned` (S, S, 3) float32, before any change of colour, stands instead of `canvas` and
        `box`; `row` is the place.
        """
        first = np.asarray(np.searchsorted(self._row_P, faces["row"], "left"))
        end = np.asarray(np.searchsorted(self._row_P, faces["row"], "right"))
        index = np.repeat(np.arange(len(faces["row"])), end - first)
        number = np.arange(len(index)) - np.searchsorted(index, index)  # among the places of its face
        place = self._place_P[first[index] + number]
        batch = to_tensors({name: faces[name][index] for name in _WARPED}, self._device)
        maps = torch.from_numpy(self._map_P[place]).to(self._device)
        aligned, points = align_faces(batch["canvas"], batch["points"], batch["box"], self._align, maps)
        rows = {}
        for name, values in faces.items():
            if name not in _WARPED:
                rows[name] = values[index]
        return rows | {
            "aligned": aligned.permute(0, 2, 3, 1).float().cpu().numpy(),
            "points": points.cpu().numpy(),
            "row": place,
        }


@dataclass
class TrainingBatches:
    """An epoch's batches, read once; afterwards see `ordered.skipped` and `batches.waited`."""

    ordered: OrderedBatches
    batches: Prefetcher


def no_face(shards: Any, purpose: str, skipped: list[tuple[str, str]]) -> UserError:
    """The error if no face can be used; `purpose` is '' or, say, ' for the gallery'."""
    key, reason = skipped[0] if skipped else ("", "no rows")
    return UserError(
        f"data.shards={shards}: no training face can be used{purpose}; "
        f"the first of {len(skipped)}: {key}: {reason}"
    )


def threads(experiment: Experiment) -> int:
    """Compute threads of a worker: `scale.threads`, else all cores of a machine that it has alone,
    else the CPUs that Ray reserves for it.
    """
    scale = experiment.scale
    if scale.threads:
        return scale.threads
    if ray.train.get_context().get_local_world_size() == 1:
        return usable_cpus()
    return max(1, int(scale.cpus_per_worker))
