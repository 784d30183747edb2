"""Ages for a collection of photos: their places first, bytes later, uint8 canvases between the stages, then a table.

    uris of photos, or face shards
      -> find_faces   tasks on CPUs: read, decode, detect, cut out canvases (`ageray.data.finding`)
      -> AgeFaces     actors that hold the model, on GPUs where there are any; canvases in, ages out (`ageray.age_faces`)
      -> OUT/*.parquet, OUT/report.html and, as the last, OUT/summary.json

All is written to `OUT.unfinished`, which takes the place of OUT when complete: an interrupted run leaves an earlier
result as it was.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pyarrow.dataset
import pyarrow.parquet as pq
import ray
import ray.data
from ray.data import ActorPoolStrategy
from ray.data.datasource import FilenameProvider

from ageray import bundle, cluster, report, scores, storage
from ageray.age_faces import AgeFaces, scores_schema
from ageray.bundle import Bundle
from ageray.data.collection import Collection
from ageray.data.finding import Search, find_faces
from ageray.errors import UserError
from ageray.experiment import Align, Detect, Scale
from ageray.scores import Digest

SUMMARY = "summary.json"
"""Written last: a folder of scores that has it is complete."""

_ROWS_PER_PART = 250_000
_TASKS_PER_PROCESS = 1000


class Team(NamedTuple):
    """The actors that hold the model, and what each takes: logical CPUs, GPUs and compute threads (0: all cores)."""

    actors: int
    cpus: float
    gpus: int
    threads: int


def score(
    inputs: str,
    out: str,
    model: str,
    scale: Scale,
    detect: Detect | None = None,
    search: Search = "auto",
    posterior: bool = False,
    fresh: bool = False,
) -> dict[str, Any]:
    """Scores every face of every photo of `inputs`, writes the folder `out` and returns what is in its summary.json.

    inputs: a folder of photos, one photo, a CSV or Parquet manifest, or face shards (see `Collection`).
    detect: null takes the bundle's detector settings, those of training.
    posterior: adds the column of that name.
    fresh: replaces the result of an earlier run.

    A photo's faces are numbered from its left to its right, with keys `uri#number`; a row of a face shard keeps its key
    and is one face. A photo that gives no face has one row with face -1 and `error`; one that a manifest names twice is
    scored twice. Starts Ray where none runs. Raises UserError for what the user can mend.
    """
    target = check_target(out, fresh)
    collection = Collection.of(inputs)
    loaded = bundle.load(model)
    align, detect = loaded.experiment.align, detect or loaded.experiment.data.detect
    if search == "never" and collection.kind != "face shards" and align.mode != "none":
        raise UserError(f"--detect never: {inputs} has no landmarks of its own, and {model} needs them; use auto")
    cluster.connect(scale)
    team = share_out(scale)
    photos, count = read(collection, scale.decode_batch)
    print(f"{inputs}: {count:,} {'faces in shards' if collection.kind == 'face shards' else 'photos'}")
    print(f"{model} ({loaded.identity}): {_plan(team, scale)}", flush=True)
    # A bundle by its absolute place (workers run elsewhere), a model of the zoo by name (in each installation).
    place = model if model.startswith("zoo:") else storage.absolute(loaded.uri)
    with _taking_the_place_of(target) as draft:
        started = time.perf_counter()
        found = find(photos, scale.decode_batch, align, detect, search, collection.store)
        _write(age(found, place, team, scale.score_batch, posterior), draft, loaded, posterior)
        seconds = time.perf_counter() - started
        digest = scores.read_scores(draft)
        summary = {
            "input": inputs,
            **_figures(digest, seconds),
            "model": {"name": model, "network": loaded.experiment.model.name, "identity": loaded.identity},
            "detector": {"search": search, **detect.model_dump()},
            "actors": team._asdict(),
        }
        report.score_report(draft, digest, summary, loaded.card)
        storage.write_text(storage.join(draft, SUMMARY), json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    return summary


def _figures(digest: Digest, seconds: float) -> dict[str, Any]:
    return {
        "images": digest.images,
        "faces": digest.faces,
        "errors": dict(digest.errors.most_common()),
        "seconds": round(seconds, 2),
        "images_per_second": round(digest.images / seconds, 2),
        "finished": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    }


@contextmanager
def _taking_the_place_of(target: str) -> Iterator[str]:
    """A folder to write to, which becomes `target` if all goes well and vanishes if not."""
    draft = target + ".unfinished"
    storage.remove_tree(draft)
    storage.make_folder(draft)
    try:
        yield draft
        storage.replace_folder(draft, target, last=SUMMARY)
    except BaseException:
        storage.remove_tree(draft)
        raise


def check_target(out: str, fresh: bool) -> str:
    """`out` as an absolute uri. Raises UserError if anything is there, unless it is an earlier result and `fresh`."""
    target = storage.absolute(out.rstrip("/"))
    if not storage.exists(target) or storage.exists(storage.join(target, storage.UNFINISHED)):
        return target
    names = [file[len(target) + 1 :] for file in storage.list_files(target)] if storage.is_folder(target) else [out]
    if not names:
        return target
    strange = [name for name in names if name not in (SUMMARY, report.PAGE) and not name.endswith(".parquet")]
    if strange or SUMMARY not in names:
        name = (strange or names)[0]
        raise UserError(f"--out {out}: holds {name}, which jobs.score did not write; give a new or empty folder")
    if not fresh:
        raise UserError(f"--out {out}: holds an earlier result; give another folder, or replace it with --fresh")
    return target


def share_out(scale: Scale) -> Team:
    """Actors for the model, with CPUs left to decode. Raises UserError if the cluster lacks what `scale` asks for."""
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    cpus, gpus = resources.get("CPU", 0), int(resources.get("GPU", 0))
    if scale.gpu is True and not gpus:
        raise UserError("scale.gpu=true: the cluster has no GPU; use scale.gpu=auto")
    on_gpu = gpus > 0 and scale.gpu is not False
    actors = scale.score_workers or (gpus if on_gpu else max(1, int(cpus) // 4))
    if on_gpu and actors > gpus:
        raise UserError(f"scale.score_workers={actors}: each takes a GPU, and there are {gpus}; use 0 for all of them")
    if actors * scale.cpus_per_worker + 1 > cpus:
        taken = f"{actors} scoring actors with scale.cpus_per_worker={scale.cpus_per_worker:g}"
        raise UserError(f"{taken} leave none of {cpus:g} logical CPUs for decoding; lower one, or raise scale.local_cpus")
    threads = scale.threads or (0 if actors == 1 else max(1, int(scale.cpus_per_worker)))
    return Team(actors, scale.cpus_per_worker, int(on_gpu), threads)


def _plan(team: Team, scale: Scale) -> str:
    place = "a GPU" if team.gpus else f"{team.threads or 'all'} core{'s' * (team.threads != 1)}"
    actors = f"{team.actors} actor{'s' * (team.actors > 1)} on {place}{' each' * (team.actors > 1)}"
    return f"{actors}, {scale.score_batch} faces a batch; other CPUs decode {scale.decode_batch} images a task"


# --- the pipeline ---------------------------------------------------------------------------------------------------


def read(collection: Collection, batch: int) -> tuple[ray.data.Dataset, int]:
    """The collection as `find_faces` takes it, in blocks of `batch` rows, and its number of rows.

    Raises UserError if it has none or cannot be read.
    """
    if collection.kind == "face shards":
        filesystem, _ = storage.filesystem(collection.uri)
        paths = [storage.filesystem(file)[1] for file in collection.files]
        there = pq.read_schema(paths[0], filesystem=filesystem).names
        columns = [name for name in ("key", "image", "landmarks", "box") if name in there]
        shards = ray.data.read_parquet(paths, filesystem=filesystem, include_paths=True, partitioning=None)
        dataset = shards.select_columns([*columns, "path"])
        count = pyarrow.dataset.dataset(paths, filesystem=filesystem, format="parquet").count_rows()
    else:
        # In the object store from the start: a long list must not weigh on the driver.
        blocks: list[Any] = []
        count = 0
        for places in collection.places():
            blocks.append(ray.put(places))
            count += places.num_rows
        dataset = ray.data.from_arrow_refs(blocks)
    if not count:
        raise UserError(f"{collection.uri}: names no photo; check the path")
    return dataset.repartition(target_num_rows_per_block=batch), count


def find(photos: ray.data.Dataset, batch: int, align: Align, detect: Detect, search: Search, store: str = "") -> ray.data.Dataset:
    """First stage: rows of `finding.FOUND`, in any order."""
    return photos.map_batches(
        find_faces,  # type: ignore[arg-type]  # Ray's type knows no keyword arguments
        batch_size=batch,
        batch_format="pyarrow",
        fn_kwargs={"align": align, "detect": detect, "search": search, "run": uuid.uuid4().hex[:12], "store": store},
        num_cpus=1,
        # Processes are renewed, as decoders leak; and operators with unequal arguments stay apart: Ray would otherwise
        # run this one inside the few actors of the next.
        max_calls=_TASKS_PER_PROCESS,
    )


def age(found: ray.data.Dataset, model: str, team: Team, batch: int, posterior: bool) -> ray.data.Dataset:
    """Second stage: rows of the scores table, in any order."""
    return found.map_batches(
        AgeFaces,
        batch_size=batch,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=team.actors),
        # The model's name, not the model: an actor that restarts loads it again.
        fn_constructor_kwargs={"model": model, "threads": team.threads, "posterior": posterior},
        num_cpus=team.cpus,
        num_gpus=team.gpus,
    )


class _PartNames(FilenameProvider):
    def get_filename_for_task(self, write_uuid: str, task_index: int) -> str:
        return f"part-{task_index:05d}-{write_uuid}"


def _write(aged: ray.data.Dataset, folder: str, loaded: Bundle, posterior: bool) -> None:
    filesystem, path = storage.filesystem(folder)
    about = {"identity": loaded.identity, "network": loaded.experiment.model.name}
    aged.write_parquet(
        path,
        filesystem=filesystem,
        try_create_dir=False,  # it is there; on S3 Arrow would leave an empty object named like the folder
        filename_provider=_PartNames(),
        min_rows_per_file=_ROWS_PER_PART,
        schema=scores_schema(posterior).with_metadata({"ageray": json.dumps(about)}),
    )
