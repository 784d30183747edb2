"""One input and one result, divided among several jobs: `--shard i/n`.

Each job lists the whole input and scores the i-th of n equal ranges of it, into a folder of its own
in OUT.shards. The folder is an ordinary scores folder, so a shard resumes like any run. The job
that finds every shard complete puts them together as OUT; of several that end at once, one does.
Parts are moved or copied by the store, not read.
"""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ageray import config, storage
from ageray.errors import UserError
from ageray.schema import check
from ageray.score import export
from ageray.score.checkpoint import ScoreCheckpoint, read_json
from ageray.score.files import SUMMARY, ScoreFiles
from ageray.score.inputs import Inputs
from ageray.score.page import score_report
from ageray.score.results import Digest, Photo
from ageray.storage.lease import Lease, is_taken


class Shard(NamedTuple):
    """The number of a shard, from 1, and how many there are."""

    number: int
    shards: int

    def __str__(self) -> str:
        return f"{self.number}/{self.shards}"

    def folder(self, out: str) -> str:
        """The folder of this shard's result."""
        return storage.join(_folder(out.rstrip("/")), f"{self.number:05d}-of-{self.shards:05d}")

    def all(self) -> list[Shard]:
        """The shards of the whole."""
        return [Shard(number, self.shards) for number in range(1, self.shards + 1)]


def _folder(out: str) -> str:
    """The folder of all shards of a result."""
    return f"{out}.shards"


def parse(text: str) -> Shard:
    """`2/8` as a Shard. Raises UserError."""
    number, slash, count = text.partition("/")
    if slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count) <= 99_999:
        return Shard(int(number), int(count))
    raise UserError(f"--shard {text}: give i/n, with i from 1 to n, as 2/8")


def part_of(inputs: Inputs, shard: Shard) -> Inputs:
    """The inputs of one shard: segments of a list, or files.

    Raises UserError if there are fewer of these than shards.
    """
    if inputs.lists_files:
        places = inputs.list_places()
        start, end = _range(shard, len(places), f"{places.photos:,} photos make")
        return replace(inputs, places=places.part(start, end))
    start, end = _range(shard, len(inputs.files), "there are")
    return replace(inputs, files=inputs.files[start:end])


def _range(shard: Shard, count: int, verb: str) -> tuple[int, int]:
    if shard.shards > count:
        units = f"{verb} {count:,} unit{'s' * (count != 1)} of work"
        raise UserError(f"--shard {shard}: {units}; give at most that many shards")
    return (shard.number - 1) * count // shard.shards, shard.number * count // shard.shards


# --- putting together ----------------------------------------------------------------------------


def to_json(digest: Digest) -> dict[str, Any]:
    """A digest for the summary."""
    drawn = [{"photo": photo, "rows": rows} for photo, rows in digest.drawn.items()]
    return {
        "images": digest.images,
        "faces": digest.faces,
        "errors": dict(digest.errors),
        "ages": digest.ages.tolist(),
        "failures": digest.failures,
        "drawn": drawn,
    }


def from_json(content: dict[str, Any]) -> Digest:
    """The digest of `to_json`."""
    return Digest(
        content["images"],
        content["faces"],
        Counter(content["errors"]),
        np.array(content["ages"], np.int64),
        [(Photo(*photo), error) for photo, error in content["failures"]],
        {Photo(*entry["photo"]): entry["rows"] for entry in content["drawn"]},
    )


def summaries(shard: Shard, out: str) -> list[dict[str, Any]] | None:
    """The summaries of all shards, in order; None if one is not complete.

    Raises UserError if two shards have other settings.
    """
    contents = []
    for other in shard.all():
        files = ScoreFiles(other.folder(out))
        content = read_json(files.summary) or read_json(files.earlier_summary)
        if content is None:
            return None
        contents.append(content)
    first = _common(contents[0]["plan"])
    for other, content in zip(shard.all(), contents, strict=True):
        changes = config.differences(first, _common(content["plan"]))
        if changes:
            folder = other.folder(out)
            raise UserError(f"{folder}: has other settings than shard 1 ({'; '.join(changes)}); remove it")
    return contents


def _common(plan: dict[str, Any]) -> dict[str, Any]:
    """The plan without what differs between shards."""
    common = {name: value for name, value in plan.items() if name not in ("shard", "shards")}
    common["input"] = {name: plan["input"][name] for name in ("uri", "kind")}
    return common


def complete(files: ScoreFiles, plan: dict[str, Any]) -> dict[str, Any] | None:
    """The summary of a result that was put together from shards of this plan; None if there is
    none.
    """
    summary = read_json(files.summary) or read_json(files.earlier_summary)
    if summary is None or storage.half_written(files.folder):
        return None
    shard = str(plan["shard"])
    is_same = summary.get("plan", {}).get("shards") == shard.split("/")[1]
    return summary if is_same and not config.differences(_common(summary["plan"]), _common(plan)) else None


def join(
    shard: Shard, files: ScoreFiles, parts: list[dict[str, Any]], card: dict[str, Any]
) -> dict[str, Any] | None:
    """Writes the result of the whole from the shards, whose summaries are `parts`, and removes
    them. Returns its summary; None if another job is writing it.

    Jobs that end at the same moment may all come here. A lease lets one of them through.
    """
    try:
        lease = Lease(_folder(files.folder), "job")
    except UserError as error:
        if is_taken(error):
            return None
        raise
    with lease:
        whole = complete(files, parts[0]["plan"])  # the other one was first
        return whole or _write(shard, files, parts, card)


def _write(
    shard: Shard, files: ScoreFiles, parts: list[dict[str, Any]], card: dict[str, Any]
) -> dict[str, Any]:
    draft = ScoreFiles(storage.join(_folder(files.folder), "joined"))
    storage.remove_tree(draft.folder)  # of a job that was killed
    storage.make_folder(draft.folder)
    _join_tables(shard, files.folder, draft)
    export.convert(draft.folder, parts[0]["plan"].get("format", "parquet"))
    digest = Digest()
    for part in parts:
        digest = digest.merge(from_json(part["digest"]))
    seconds = sum(part["seconds"] for part in parts)
    plan = _common(parts[0]["plan"])
    plan["input"]["photos"] = digest.images
    summary = {
        **parts[0],
        "images": digest.images,
        "faces": digest.faces,
        "errors": dict(digest.errors.most_common()),
        "seconds": round(seconds, 2),
        "images_per_second": round(digest.images / seconds, 2),
        "finished": max(part["finished"] for part in parts),
        "plan": plan | {"shards": str(shard.shards)},
    }
    del summary["digest"]
    score_report(draft, digest, summary, card)
    storage.write_text(draft.summary, json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    storage.replace_folder(draft.folder, files.folder, last=SUMMARY)
    for other in shard.all():
        own = ScoreFiles(other.folder(files.folder))
        storage.remove_tree(own.folder)
        ScoreCheckpoint(own).delete()  # a job that was killed at its very end left it
    return summary


def _join_tables(shard: Shard, out: str, draft: ScoreFiles) -> None:
    """Puts the tables of all shards into `draft`: the parts numbered through, the errors in one
    file.
    """
    folders = [ScoreFiles(other.folder(out)) for other in shard.all()]
    parts = [uri for files in folders for uri in _parts(files)]
    targets = [draft.part(number) for number in range(len(parts))]
    with ThreadPoolExecutor(storage.READERS) as pool:
        list(pool.map(storage.copy_within, parts, targets))
    filesystem, path = storage.filesystem(folders[0].errors)
    schema = pq.read_schema(path, filesystem=filesystem)
    filesystem, path = storage.filesystem(draft.errors)
    with closing(pq.ParquetWriter(path, schema, filesystem=filesystem, compression="zstd")) as writer:
        for files in folders:
            filesystem, path = storage.filesystem(files.errors)
            with pq.ParquetFile(path, filesystem=filesystem) as errors:
                for batch in errors.iter_batches():
                    writer.write_table(check(pa.Table.from_batches([batch]), schema, files.errors))


def _parts(files: ScoreFiles) -> list[str]:
    tables = storage.list_files(files.folder, (".parquet",))
    return [uri for uri in tables if uri != files.errors]
