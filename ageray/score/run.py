"""A scoring run, from INPUT to a complete scores folder.

`ageray.score.pipeline` opens with the way of a photo, `ageray.score.files` with the files that a
run writes. All work goes to OUT.unfinished, from which a killed run resumes. When it is complete it
takes the place of OUT; an earlier result in OUT stays until then.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, NamedTuple

import pyarrow as pa

from ageray import bundle, config, storage
from ageray.bundle import Bundle
from ageray.errors import StoreError, UserError
from ageray.experiment import Detect, Scale
from ageray.machine import engine
from ageray.machine.pool import Pool
from ageray.schema import BOX_ORDER, POINTS_ORDER, UNAVAILABLE
from ageray.score import chunks, export, join, local, read, retry, shards, write
from ageray.score.checkpoint import ScoreCheckpoint, read_json
from ageray.score.export import Format
from ageray.score.files import EARLIER_SUMMARY, SUMMARY, ScoreFiles
from ageray.score.inputs import Inputs
from ageray.score.join import Join
from ageray.score.page import score_report
from ageray.score.pieces import Piece
from ageray.score.progress import Progress, ProgressReporter
from ageray.score.read import InputSummary
from ageray.score.shards import Shard
from ageray.score.write import Part, WrittenPart
from ageray.stages.columns import Search, scores_schema
from ageray.storage.lease import Lease, is_taken

_BYTES_A_PHOTO = 100_000
"""About, to guess the number of photos in tars."""

_GIVE_UP = 32
"""Chunks in a row of which no photo could be had, after which a run ends."""


class Task(NamedTuple):
    """What is scored with what."""

    inputs: Inputs
    summary: InputSummary
    model: str
    bundle: Bundle
    detect: Detect
    search: Search
    posterior: bool
    shard: Shard | None = None
    format: Format = "parquet"
    join: Join | None = None

    def plan(self) -> dict[str, Any]:
        """Everything that a result depends on. Two runs with equal plans give the same rows.

        `code` is the program's version: a run that another version began is not continued. Plans of
        earlier versions have none.
        """
        plan: dict[str, Any] = {
            "input": {
                "uri": self.inputs.uri,
                "kind": self.inputs.kind,
                "photos": self.summary.photos,
                "names": self.summary.names,
            },
            "model": self.bundle.identity,
            "detect": self.search,
            "detector": self.detect.model_dump(mode="json"),
            "posterior": self.posterior,
            "lot": chunks.SIZE,
            "code": f"ageray {version('ageray')}",
        }
        if self.shard is not None:
            plan["shard"] = str(self.shard)
        if self.format != "parquet":
            plan["format"] = self.format
        return plan


class _Engine(NamedTuple):
    """What computes: for the summary, in words, and its two functions.

    results gives rows of scores, or pieces that have them already. write_parts takes the parts of
    the result, the files of the run, those of the result, the schema, and how rows join back.
    """

    workers: dict[str, Any]
    description: str
    results: Callable[[ScoreCheckpoint], Iterator[pa.Table | Piece]]
    write_parts: Callable[[list[Part], ScoreFiles, ScoreFiles, pa.Schema, Join | None], Iterator[WrittenPart]]


def score(
    location: str | Sequence[str],
    out: str,
    model: str,
    scale: Scale,
    detect: Detect | None = None,
    search: Search = "auto",
    posterior: bool = False,
    fresh: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    finish: bool = False,
    shard: Shard | None = None,
    retry_errors: bool = False,
    format: Format = "parquet",
) -> dict[str, Any]:
    """Scores every face of every photo, writes the folder `out` and returns what is in its
    _summary.json.

    location: INPUT, or several of one kind; see `Inputs.open_all`.
    detect: settings of the detector; None takes the bundle's, which are those of training.
    posterior: adds the column of that name.
    fresh: starts from the beginning and replaces the result of an earlier run. Without it an
    interrupted run resumes, and a complete result is returned as it is; both only if the plan is
    the same.
    on_progress: gets a report every second.
    finish: completes the result although some photos' store does not answer; their rows have the
    error `unavailable`. Without it such a run stays unfinished, and the next one tries them again.
    shard: scores only this part of the input. The last one to end writes `out`; the others return
    the summary of their own part.
    retry_errors: scores only the photos of a complete result that failed (`ageray.score.retry`).
    Not with `fresh` or `shard`.
    format: of the table's files.

    A photo's faces are numbered from the left and have keys `image#number`, or the input's own ids
    (`ageray.score.join`). A row of a face shard keeps its key and is one face. A photo that gives
    no face has one row with face -1 and `error`. A photo that a manifest names twice is scored
    twice. `scale.engine` says what computes (`ageray.machine.engine`). Raises UserError for the
    user's mistakes, StoreError for a store that does not answer.
    """
    locations = [location] if isinstance(location, str) else list(location)
    location = in_words(locations)
    with ExitStack() as stack:
        pool = None
        if engine.may_be_local(scale):
            pool = stack.enter_context(local.start())
        task = _prepare(locations, model, detect, search, posterior, shard)._replace(format=format)
        options = _Options(location, out, scale, finish, pool, on_progress)
        if retry_errors:
            return _retry(task, options)
        if shard is None:
            return _score_into(task, options, fresh)
        files = check_target(out)
        whole = None if fresh else shards.complete(files, task.plan())
        if whole is not None:
            finished = whole["finished"]
            print(f"{out} is complete already (finished {finished}); --fresh scores again", flush=True)
            return whole
        folder = shard.folder(files.folder)
        summary = _score_into(task, options._replace(out=folder), fresh)
        parts = shards.summaries(shard, files.folder)
        if parts is None:
            print(f"shard {shard} is complete; the last one to end writes {out}", flush=True)
            return summary
        whole = shards.join(shard, files, parts, task.bundle.card)
        if whole is None:
            print(f"shard {shard} is complete; another job is writing {out}", flush=True)
        return whole or summary


class _Options(NamedTuple):
    """Arguments of `score`, and the pool that its local engine would take."""

    location: str
    out: str
    scale: Scale
    finish: bool
    pool: Pool | None
    on_progress: Callable[[Progress], None] | None


def _score_into(task: Task, options: _Options, fresh: bool) -> dict[str, Any]:
    """Scores one input into one folder."""
    out = options.out
    checkpoint = ScoreCheckpoint(check_target(out))
    check_plan(checkpoint, out, task.plan(), fresh)
    with _lease(checkpoint, out) as lease:
        complete = check_plan(checkpoint, out, task.plan(), fresh)
        if fresh or complete is not None:
            checkpoint.delete()
        print(f"{options.location}: {task.inputs.describe(task.summary.photos)}")
        if str(task.inputs.passed_over):
            print(f"passed over: {task.inputs.passed_over}", flush=True)
        if complete is not None:
            finished = complete["finished"]
            print(f"{out} is complete already (finished {finished}); --fresh scores again", flush=True)
            return complete
        return _compute(task, options, checkpoint, lease)


def _retry(task: Task, options: _Options) -> dict[str, Any]:
    """Scores the photos of a complete result that failed."""
    out = options.out
    if task.summary.places is None:
        raise UserError(
            f"--retry-errors: {options.location} is no list or folder of photos; score again with --fresh"
        )
    checkpoint = ScoreCheckpoint(check_target(out))
    retry.check(checkpoint, out, task.plan())
    with _lease(checkpoint, out) as lease:
        before = retry.check(checkpoint, out, task.plan())
        photos = retry.count(checkpoint.files)
        if not photos:
            print(f"{out} has no photo to try again", flush=True)
            checkpoint.delete()
            return before
        print(f"{options.location}: {photos:,} of {before['images']:,} photos are tried again", flush=True)
        return _compute(task, options, checkpoint, lease, before)


def _compute(
    task: Task,
    options: _Options,
    checkpoint: ScoreCheckpoint,
    lease: Lease,
    before: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Scores what is not done. before: the summary of a result of which some photos are tried
    again.
    """
    scale, finish = options.scale, options.finish
    try:
        if before is None:
            _open(checkpoint, task.plan(), options.out)
        else:
            _open(checkpoint, task.plan() | {retry.MARK: True}, options.out)
            assert task.summary.places is not None
            rows = retry.rows_of(checkpoint, task.summary.places.segments(), task.join)
            checkpoint.add_result(rows, before["seconds"])
        computing = _engine(task, scale, options.pool)
        print(f"{task.model} ({task.bundle.identity}): {computing.description}", flush=True)
        photos, weight = task.summary.photos, task.summary.weight
        with ProgressReporter(checkpoint, photos, weight, options.on_progress) as progress:
            _score(computing, checkpoint, progress, lease, finish)
            progress.set_state("finishing")
            checkpoint.flush(progress.seconds)
            lease.check()
            if not finish:
                _check_available(checkpoint)
            summary = _finish(task, computing, checkpoint, progress.seconds, options.location)
    except BaseException:
        with suppress(UserError):
            checkpoint.flush(0)  # what a signal would lose otherwise
        if not checkpoint.counts.photos:
            with suppress(UserError):
                checkpoint.delete()  # it holds no work
        raise
    checkpoint.delete()
    return summary


def in_words(locations: Sequence[str]) -> str:
    """INPUT for a message: the only one, or the first and how many more."""
    if len(locations) == 1:
        return locations[0]
    return f"{locations[0]} and {len(locations) - 1:,} more"


def _prepare(
    locations: Sequence[str],
    model: str,
    detect: Detect | None,
    search: Search,
    posterior: bool,
    shard: Shard | None,
) -> Task:
    inputs = Inputs.open_all(locations)
    if shard is not None:
        inputs = shards.part_of(inputs, shard)
    loaded = bundle.load(model)
    needs_landmarks = loaded.experiment.align.mode != "none"
    if search == "never" and inputs.kind != "face shards" and needs_landmarks:
        reason = f"{in_words(locations)} has no landmarks of its own, and {model} needs them"
        raise UserError(f"--detect never: {reason}; use auto")
    detect = detect or loaded.experiment.data.detect
    summary = read.scan(inputs)
    joined = join.of_run(inputs, summary)
    return Task(inputs, summary, model, loaded, detect, search, posterior, shard, join=joined)


def _lease(checkpoint: ScoreCheckpoint, out: str) -> Lease:
    try:
        return Lease(checkpoint.files.unfinished)
    except StoreError:
        raise
    except UserError as error:
        if is_taken(error):
            raise UserError(f"--out {out}: {error}") from None
        raise UserError(f"--out {out}: cannot be written ({error})") from None


def _open(checkpoint: ScoreCheckpoint, plan: dict[str, Any], out: str) -> None:
    try:
        checkpoint.open(plan)
    except StoreError:
        raise
    except UserError as error:
        raise UserError(f"--out {out}: cannot be written ({error})") from None
    if checkpoint.counts.photos:
        missing = len(checkpoint.unavailable)
        again = f", and tries {missing:,} again" if missing else ""
        done = checkpoint.counts.photos - missing
        print(f"goes on after {done:,} photos that are done{again}", flush=True)


def _engine(task: Task, scale: Scale, pool: Pool | None) -> _Engine:
    """The engine for this task. pool: None where it must be Ray."""
    photos = task.summary.photos
    if photos is None:
        photos = task.summary.weight // _BYTES_A_PHOTO
    if pool is not None and engine.choose(scale, photos) == "local":
        computing = local.LocalEngine(
            pool,
            scale,
            task.inputs,
            task.summary,
            task.model,
            task.bundle.experiment.align,
            task.detect,
            task.search,
            task.posterior,
        )
        return _Engine(computing.workers, computing.describe(), computing.tables, _write_parts)
    if pool is not None:
        pool.close()
    return _ray_engine(task, scale)


def _ray_engine(task: Task, scale: Scale) -> _Engine:
    """Joins or starts Ray."""
    from ageray import cluster  # Ray takes a second to import
    from ageray.cluster.actors import describe, detects_on_gpu, plan_actors
    from ageray.score import pipeline

    cluster.connect(scale)
    align = task.bundle.experiment.align
    detecting = _may_detect_on_gpu(task, scale)
    actors = plan_actors(scale, detecting)
    detecting = detects_on_gpu(scale, actors) and detecting
    batch = scale.faces_a_batch(bool(actors.gpus))

    size = pipeline.photos_a_task(
        scale.decode_batch, task.summary.photos, cluster.total(cluster.nodes(), "CPU")
    )

    def results(checkpoint: ScoreCheckpoint) -> Iterator[pa.Table | Piece]:
        photos = pipeline.read_photos(task.inputs, task.summary, size, checkpoint)
        if photos is None:
            return
        model = bundle.model_for_workers(task.model)
        if detecting:
            pixels = pipeline.decode_photos(photos, size, align, task.detect, task.search)
            rows = pipeline.age_photos(
                pixels, model, actors, batch, task.posterior, task.detect, scale.cuda_graphs
            )
        else:
            faces = pipeline.detect_faces(photos, size, align, task.detect, task.search)
            rows = pipeline.predict_ages(faces, model, actors, batch, task.posterior, scale.cuda_graphs)
        yield from pipeline.results(rows, checkpoint.files, by_tasks=not checkpoint.chunks_again)

    return _Engine(actors._asdict(), describe(actors, batch, size, detecting), results, pipeline.write_parts)


def _may_detect_on_gpu(task: Task, scale: Scale) -> bool:
    """Whether actors find the faces if they have GPUs. Most rows of face shards bring their
    landmarks."""
    if scale.detect == "cpu" or task.search == "never" or task.bundle.experiment.align.mode == "none":
        return False
    return scale.detect == "gpu" or task.search == "always" or task.inputs.kind != "face shards"


def _write_parts(
    parts: list[Part], _: ScoreFiles, target: ScoreFiles, schema: pa.Schema, joined: Join | None
) -> Iterator[WrittenPart]:
    """Writes parts one after the other."""
    for part in parts:
        yield write.write_part(part, target, schema, joined)


def _score(
    computing: _Engine,
    checkpoint: ScoreCheckpoint,
    progress: ProgressReporter,
    lease: Lease,
    finish: bool,
) -> None:
    """Scores the chunks that are not done. Rows come in any order; a chunk is saved when its last
    row has come.
    """
    assembler = chunks.ChunkAssembler(checkpoint.done, checkpoint.chunks_again)
    lost_in_a_row = 0
    for result in computing.results(checkpoint):
        progress.set_state("running")
        lease.check()
        if isinstance(result, Piece):
            progress.add_counts(result.counts)
            checkpoint.pieces.add(result)
            lost = result.counts.errors[UNAVAILABLE] == result.counts.photos
            lost_in_a_row = lost_in_a_row + len(result.chunks) if lost else 0
        else:
            for chunk in assembler.add(result):
                progress.add(chunk, checkpoint.is_again(chunk))
                checkpoint.add(chunk, progress.seconds)
                lost = len(chunks.unavailable(chunk)) == len(chunk)
                lost_in_a_row = lost_in_a_row + 1 if lost else 0
        if lost_in_a_row >= _GIVE_UP and not finish:
            return  # the store will not answer the rest either
    missing = [chunk for chunk in assembler.incomplete() if chunk not in checkpoint.done]
    if missing:
        raise RuntimeError(f"{len(missing)} chunks of photos came back without all of their rows")


def _check_available(checkpoint: ScoreCheckpoint) -> None:
    """Raises StoreError if the store of some photos did not answer."""
    count = len(checkpoint.unavailable)
    if count:
        raise StoreError(
            f"{count:,} photo{'s' * (count > 1)} could not be read, because the store did not answer; the "
            "same command goes on, and tries them again; --finish completes the result without them"
        )


def _finish(
    task: Task, computing: _Engine, checkpoint: ScoreCheckpoint, seconds: float, location: str
) -> dict[str, Any]:
    """Writes the result from the pieces and puts it in its place. seconds: of this run."""
    if not checkpoint.counts.photos:
        raise UserError(f"{location}: holds no photo; check that its tars do")
    draft = checkpoint.files.draft
    storage.make_folder(draft.folder)
    network = task.bundle.experiment.model.name
    metadata = json.dumps({"identity": task.bundle.identity, "network": network})
    fields = [*scores_schema(task.posterior), *(task.join.fields if task.join else ())]
    orders = {"box": BOX_ORDER, "landmarks": POINTS_ORDER}
    schema = pa.schema(fields, metadata={"ageray": metadata} | orders)
    plan = write.plan_parts(checkpoint.pieces)
    parts = computing.write_parts(plan, checkpoint.files, draft, schema, task.join)
    digest = write.finish(draft, parts, schema)
    if task.shard is None:
        export.convert(draft.folder, task.format)
    seconds += checkpoint.seconds
    summary = {
        "input": location,
        "images": digest.images,
        "faces": digest.faces,
        "errors": dict(digest.errors.most_common()),
        "passed_over": dict(task.inputs.passed_over.files.most_common()),
        "unreadable_folders": task.inputs.passed_over.folders,
        "seconds": round(seconds, 2),
        "images_per_second": round(digest.images / seconds, 2),
        "finished": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "model": {"name": task.model, "network": network, "identity": task.bundle.identity},
        "detector": {"search": task.search, **task.detect.model_dump()},
        "actors": computing.workers,
        "plan": task.plan(),
    }
    if task.shard is not None:
        summary["digest"] = shards.to_json(digest)
    score_report(draft, digest, summary, task.bundle.card)
    storage.write_text(draft.summary, json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    check_target(checkpoint.files.folder)  # it may have got other files since the start
    storage.replace_folder(draft.folder, checkpoint.files.folder, last=SUMMARY)
    return summary


def check_target(out: str) -> ScoreFiles:
    """The files of `out`. Raises UserError if anything is there that no scoring run wrote."""
    files = ScoreFiles(storage.absolute(out.rstrip("/")))
    if not storage.exists(files.folder):
        return files
    names = [out]
    if storage.is_folder(files.folder):
        names = storage.names_below(files.folder)
    strange = [name for name in names if not files.is_ours(name)]
    if names and {SUMMARY, EARLIER_SUMMARY, storage.MARKER}.isdisjoint(names):
        strange.append(names[0])
    if strange:
        remedy = "give a new or empty folder"
        raise UserError(f"--out {out}: holds {strange[0]}, which ageray score did not write; {remedy}")
    return files


def check_plan(
    checkpoint: ScoreCheckpoint, out: str, plan: dict[str, Any], fresh: bool
) -> dict[str, Any] | None:
    """The summary of a result that is complete with this plan; None if there is work to do.

    Raises UserError if there is a result or an unfinished run of another plan, or if the files are
    damaged.
    """
    files = checkpoint.files
    unfinished = checkpoint.plan
    if not fresh and retry.MARK in (unfinished or {}):
        remedy = "give --retry-errors again, or begin anew with --fresh"
        raise UserError(f"--out {out}: a run with --retry-errors is not complete; {remedy}")
    if unfinished is not None and not fresh and {"code": plan["code"]} | unfinished != plan:
        changes = "; ".join(config.differences(unfinished, plan))
        remedy = "give another folder, or begin anew with --fresh"
        raise UserError(f"--out {out}: {files.unfinished} was begun otherwise ({changes}); {remedy}")
    if fresh or storage.half_written(files.folder):
        return None
    written = next(filter(storage.exists, (files.summary, files.earlier_summary)), None)
    if written is None:
        return None
    summary = read_json(written)
    if summary is None:
        problem = "is damaged, so nobody knows which settings the result is of"
        raise UserError(f"--out {out}: {written} {problem}; replace the result with --fresh")
    before = summary.get("plan")
    if isinstance(before, dict) and before | {"code": plan["code"]} == plan:
        return summary  # whichever version of the program made it
    if unfinished is not None:
        return None  # the unfinished run was started with --fresh, to replace this result
    changes = "; ".join(config.differences(summary.get("plan") or {}, plan))
    remedy = "give another folder, or replace it with --fresh"
    raise UserError(f"--out {out}: holds a result of other settings ({changes}); {remedy}")
