"""Ages for a collection of photos: their places first, bytes later, uint8 canvases between the stages, then a table.

    uris of photos, or stretches of tables and tars
      -> read_segments  tasks that fetch the encoded photos of tables and tars (`ageray.score.read`)
      -> find_faces      tasks on CPUs: read, decode, detect, cut out canvases (`ageray.stages.detect`)
      -> AgeFaces        actors that hold the model, on GPUs where there are any; canvases in, ages out (`ageray.stages.predict`)
      -> here            rows of whole lots, kept in OUT.unfinished as they come (`ageray.score.checkpoint`)
      -> OUT/*.parquet, OUT/report.html and, as the last, OUT/summary.json

What is written to OUT.unfinished is what a run that was killed goes on from; it takes the place of OUT when complete, and
an earlier result in OUT stays as it was until then.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple

from ageray import bundle, cluster, report, storage
from ageray.bundle import Bundle
from ageray.cluster.actors import ActorPool, describe, share_out
from ageray.errors import UserError
from ageray.experiment import Detect, Scale
from ageray.score import checkpoint, chunks, progress, results, write
from ageray.score import read as score_read
from ageray.score.checkpoint import ScoreCheckpoint
from ageray.score.inputs import Collection
from ageray.score.page import score_report
from ageray.score.pipeline import _tables, age, find, read
from ageray.score.progress import ProgressReporter, Report
from ageray.score.read import InputSummary
from ageray.stages.detect import Search
from ageray.stages.predict import scores_schema

SUMMARY = "summary.json"
"""ParsedConfig last: a folder of scores that has it is complete."""


class Order(NamedTuple):
    """What is to be scored with what."""

    collection: Collection
    survey: InputSummary
    model: str
    loaded: Bundle
    detect: Detect
    search: Search
    posterior: bool

    def plan(self) -> dict[str, Any]:
        """All that a result depends on. Two runs with equal plans give the same rows."""
        found = {
            "uri": self.collection.uri,
            "kind": self.collection.kind,
            "photos": self.survey.photos,
            "names": self.survey.names,
        }
        return {
            "input": found,
            "model": self.loaded.identity,
            "detect": self.search,
            "detector": self.detect.model_dump(mode="json"),
            "posterior": self.posterior,
            "lot": chunks.SIZE,
        }


def score(
    inputs: str,
    out: str,
    model: str,
    scale: Scale,
    detect: Detect | None = None,
    search: Search = "auto",
    posterior: bool = False,
    fresh: bool = False,
    watch: Callable[[Report], None] | None = None,
) -> dict[str, Any]:
    """Scores every face of every photo of `inputs`, writes the folder `out` and returns what is in its summary.json.

    inputs: photos, tars, tables or a manifest (see `Collection`).
    detect: null takes the bundle's detector settings, those of training.
    posterior: adds the column of that name.
    fresh: begins anew, and replaces the result of an earlier run. Without it a run that was interrupted goes on, and one that is complete
    is returned as it is; both only if nothing has changed that the result depends on.
    watch: gets a report every second.

    A photo's faces are numbered from its left to its right, with keys `uri#number`; a row of a face shard keeps its key
    and is one face. A photo that gives no face has one row with face -1 and `error`; one that a manifest names twice is
    scored twice. Starts Ray where none runs. Raises UserError for what the user can mend.
    """
    order = _order(inputs, model, detect, search, posterior)
    target = check_target(out)
    book = ScoreCheckpoint(target)
    earlier = check_plan(book, target, out, order.plan(), fresh)
    print(f"{inputs}: {order.collection.describe(order.survey.photos)}")
    if earlier is not None:
        print(f"{out} is complete already (finished {earlier['finished']}); --fresh scores again", flush=True)
        book.discard()
        return earlier
    try:
        _begin(book, order.plan(), out)
        cluster.connect(scale)
        team = share_out(scale)
        print(
            f"{model} ({order.loaded.identity}): {describe(team, scale.faces_a_batch(bool(team.gpus)), scale.decode_batch)}",
            flush=True,
        )
        with ProgressReporter(book, order.survey.photos, order.survey.weight, watch) as count:
            _score(order, team, scale, book, count)
            count.turn("finishing")
            book.flush(count.seconds)
            summary = _finish(order, team, book, count, target, inputs)
    except BaseException:
        if not book.photos:
            with suppress(UserError):
                book.discard()  # nothing is lost with it
        raise
    book.discard()
    return summary


def _order(inputs: str, model: str, detect: Detect | None, search: Search, posterior: bool) -> Order:
    collection = Collection.of(inputs)
    loaded = bundle.load(model)
    align = loaded.experiment.align
    if search == "never" and collection.kind != "face shards" and align.mode != "none":
        raise UserError(
            f"--detect never: {inputs} has no landmarks of its own, and {model} needs them; use auto"
        )
    return Order(
        collection,
        score_read.survey(collection),
        model,
        loaded,
        detect or loaded.experiment.data.detect,
        search,
        posterior,
    )


def _begin(book: ScoreCheckpoint, plan: dict[str, Any], out: str) -> None:
    try:
        book.begin(plan)
    except UserError as error:
        raise UserError(f"--out {out}: cannot be written ({error})") from None
    if book.photos:
        print(f"goes on after {book.photos:,} photos that are done", flush=True)


def _score(
    order: Order, team: ActorPool, scale: Scale, book: ScoreCheckpoint, count: ProgressReporter
) -> None:
    """Keeps the rows of all lots that are not done. Rows come in any order; a lot is kept once its last row is there."""
    photos = read(order.collection, order.survey, scale.decode_batch, book)
    if photos is None:
        return
    # A bundle by its absolute place (workers run elsewhere), a model of the zoo by name (in each installation).
    place = order.model if order.model.startswith("zoo:") else storage.absolute(order.loaded.uri)
    found = find(photos, scale.decode_batch, order.loaded.experiment.align, order.detect, order.search)
    rows = age(found, place, team, scale.faces_a_batch(bool(team.gpus)), order.posterior)
    gathering = chunks.ChunkAssembler(book.done)
    for table in _tables(rows):
        count.turn("running")
        for lot in gathering.add(table):
            count.add(lot)
            book.add(lot, count.seconds)
    if len(gathering):
        raise RuntimeError(f"{len(gathering)} lots of photos came back without all of their rows")


def _finish(
    order: Order, team: ActorPool, book: ScoreCheckpoint, count: ProgressReporter, target: str, inputs: str
) -> dict[str, Any]:
    """Makes the result of the pieces and puts it in its place."""
    if not book.photos:
        raise UserError(f"{inputs}: holds no photo; check that its tars do")
    draft = storage.join(book.folder, checkpoint.RESULT)
    storage.make_folder(draft)
    about = {"identity": order.loaded.identity, "network": order.loaded.experiment.model.name}
    write.write(
        draft, book.pieces(), scores_schema(order.posterior).with_metadata({"ageray": json.dumps(about)})
    )
    digest = results.read_scores(draft)
    seconds = book.seconds + count.seconds
    summary = {
        "input": inputs,
        "images": digest.images,
        "faces": digest.faces,
        "errors": dict(digest.errors.most_common()),
        "seconds": round(seconds, 2),
        "images_per_second": round(digest.images / seconds, 2),
        "finished": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "model": {
            "name": order.model,
            "network": order.loaded.experiment.model.name,
            "identity": order.loaded.identity,
        },
        "detector": {"search": order.search, **order.detect.model_dump()},
        "actors": team._asdict(),
        "plan": order.plan(),
    }
    score_report(draft, digest, summary, order.loaded.card)
    storage.write_text(storage.join(draft, SUMMARY), json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    storage.replace_folder(draft, target, last=SUMMARY)
    return summary


def check_target(out: str) -> str:
    """`out` as an absolute uri. Raises UserError if anything is there that is no result of ours."""
    target = storage.absolute(out.rstrip("/"))
    if not storage.exists(target) or storage.exists(storage.join(target, storage.UNFINISHED)):
        return target
    names = (
        [file[len(target) + 1 :] for file in storage.list_files(target)]
        if storage.is_folder(target)
        else [out]
    )
    strange = [name for name in names if name not in (SUMMARY, report.PAGE) and not name.endswith(".parquet")]
    if names and (strange or SUMMARY not in names):
        name = (strange or names)[0]
        raise UserError(
            f"--out {out}: holds {name}, which jobs.score did not write; give a new or empty folder"
        )
    return target


def check_plan(
    book: ScoreCheckpoint, target: str, out: str, plan: dict[str, Any], fresh: bool
) -> dict[str, Any] | None:
    """The summary of a result that is complete already, or None if there is something to do.

    Raises UserError if what is there, finished or not, is of another plan, or another run is at it.
    """
    progress.check_single_writer(book)
    begun = book.plan
    if fresh or begun is None:
        book.discard()
    elif begun != plan:
        changes = "; ".join(checkpoint.differences(begun, plan))
        raise UserError(
            f"--out {out}: {book.folder} was begun otherwise ({changes}); give another folder, or begin anew with --fresh"
        )
    summary = None if fresh else checkpoint.read_json(storage.join(target, SUMMARY))
    if summary is None or storage.exists(storage.join(target, storage.UNFINISHED)):
        return None
    if summary.get("plan") == plan:
        return summary
    if begun is not None:
        return None  # the unfinished one was begun with --fresh, to replace this
    changes = "; ".join(checkpoint.differences(summary.get("plan") or {}, plan))
    raise UserError(
        f"--out {out}: holds a result of other settings ({changes}); give another folder, or replace it with --fresh"
    )


# --- the pipeline ---------------------------------------------------------------------------------------------------
