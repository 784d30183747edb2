"""One input among several jobs: ranges that cover it, and the result that a single job gives."""

from __future__ import annotations

import itertools
import json
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ageray import schema, storage
from ageray.errors import UserError
from ageray.experiment import Scale
from ageray.score import chunks, places, run, shards, write
from ageray.score.files import ScoreFiles
from ageray.score.inputs import Inputs
from ageray.score.page import score_report
from ageray.score.pieces import PieceIndex
from ageray.score.pieces import write as write_piece
from ageray.score.results import Digest
from ageray.score.shards import Shard
from ageray.storage import lease
from ageray.synthetic import faces


def test_a_shard_is_a_range_of_segments_or_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "SEGMENT_PATHS", 4)
    paths = [f"/p/{number:02d}.jpg" for number in range(18)]
    pq.write_table(pa.table({"image": paths}), tmp_path / "list.parquet")
    inputs = Inputs.open(str(tmp_path / "list.parquet"))
    parts = []
    for shard in Shard(1, 3).all():
        parts.append(pa.concat_tables(shards.part_of(inputs, shard).uris()).column("image").to_pylist())
    assert [len(part) for part in parts] == [4, 8, 6]
    assert list(itertools.chain.from_iterable(parts)) == paths
    with pytest.raises(UserError, match=r"--shard 1/6: 18 photos make 5 units of work; give at most"):
        shards.part_of(inputs, Shard(1, 6))
    faces.write_faces_table(tmp_path / "shards", 6, size=64, shards=3)
    tables = Inputs.open(str(tmp_path / "shards"))
    assert [len(shards.part_of(tables, shard).files) for shard in Shard(1, 2).all()] == [1, 2]


@pytest.mark.parametrize("text", ["", "3", "0/2", "3/2", "1/0", "a/b", "-1/2", "1/2/3"])
def test_mistakes(text: str) -> None:
    with pytest.raises(UserError, match="--shard .*: give i/n, with i from 1 to n, as 2/8"):
        shards.parse(text)
    assert str(shards.parse("2/8")) == "2/8"


def chunk_of(position: int) -> pa.Table:
    """Two photos with an age, and one that could not be read."""
    rows = []
    for photo in range(3):
        image = f"{position:03d}-{photo}.jpg"
        error = "cannot read: gone" if photo == 2 else None
        row = {"key": f"{image}#{photo}", "image": image, "face": -1 if error else 0, "error": error}
        for name in ("age", "age_low", "age_high"):
            row[name] = None if error else 20.0 + position
        row |= {"lot": chunks.chunk_id(0, position)}
        rows.append(row | {"photo": photo, "photos": 3, "last": False, "weight": 1, "siblings": 1})
    return pa.Table.from_pylist(rows, schema=pa.schema([*schema.SCORES, *chunks.CHUNK_OF_ROW_SCHEMA]))


def finish(files: ScoreFiles, positions: range) -> Digest:
    """Writes the tables of a result of these chunks."""
    index = PieceIndex()
    index.add(write_piece(files, pa.concat_tables([chunk_of(position) for position in positions])))
    Path(files.folder).mkdir(parents=True)
    parts = [write.write_part(part, files, schema.SCORES) for part in write.plan_parts(index)]
    return write.finish(files, parts, schema.SCORES)


def end_shard(shard: Shard, out: Path, positions: range, **settings: Any) -> None:
    """Leaves the complete folder of a shard."""
    files = ScoreFiles(shard.folder(str(out)))
    digest = finish(files, positions)
    plan = {
        "input": {"uri": "/p", "kind": "photos", "photos": digest.images},
        "model": "m",
        "shard": str(shard),
    }
    summary = {"input": "/p", "seconds": 2.0, "finished": "now", "plan": plan | settings}
    summary |= {"model": {"name": "m", "identity": "0"}, "detector": {}, "actors": {}}
    Path(files.summary).write_text(json.dumps(summary | {"digest": shards.to_json(digest)}))


@pytest.fixture
def files_of(tmp_path: Path) -> Callable[[str], dict[str, bytes]]:
    def read(folder: str) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in (tmp_path / folder).glob("*.parquet")}

    return read


def test_the_last_shard_puts_all_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files_of: Callable[[str], dict[str, bytes]]
) -> None:
    monkeypatch.setattr(write, "ROWS", 4)
    out = tmp_path / "out"
    end_shard(Shard(2, 2), out, range(4, 10))
    assert shards.summaries(Shard(2, 2), str(out)) is None
    end_shard(Shard(1, 2), out, range(4))
    parts = shards.summaries(Shard(1, 2), str(out))
    assert parts is not None
    summary = shards.join(Shard(1, 2), ScoreFiles(str(out)), parts, {"name": "tiny"})
    assert (summary["images"], summary["faces"], summary["errors"]) == (30, 20, {"cannot read": 10})
    assert (summary["seconds"], summary["plan"]["input"]["photos"]) == (4.0, 30)
    assert json.loads((out / "_summary.json").read_text()) == summary
    assert "median" in (out / "_report.html").read_text().lower()
    whole = finish(ScoreFiles(str(tmp_path / "single")), range(10))
    joined, single = files_of("out"), files_of("single")
    assert {name: joined[name] for name in joined if name != "errors.parquet"} == {
        name: single[name] for name in single if name != "errors.parquet"
    }
    assert pq.read_table(out / "errors.parquet").equals(pq.read_table(tmp_path / "single" / "errors.parquet"))
    assert whole.images == 30
    assert (
        sorted(file.name for file in tmp_path.iterdir() if "joined" in file.name or "shards" in file.name)
        == []
    )
    plan = parts[0]["plan"]
    assert shards.complete(ScoreFiles(str(out)), plan) == summary
    assert shards.complete(ScoreFiles(str(out)), plan | {"model": "other"}) is None
    # another job that ended at the same time, and lost the shards under its hands
    assert shards.join(Shard(2, 2), ScoreFiles(str(out)), parts, {"name": "tiny"}) == summary


def test_jobs_that_end_at_once_write_one_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files_of: Callable[[str], dict[str, bytes]]
) -> None:
    out, writers = tmp_path / "out", []
    replace = storage.replace_folder
    monkeypatch.setattr(storage, "replace_folder", lambda *a, **b: (writers.append(a), replace(*a, **b)))
    monkeypatch.setattr(lease, "_PERIOD", 0.1)
    draft = Path(str(out) + ".shards") / "joined"
    for seconds in (0.0, 0.0, 1.5):  # in the last round the first one still writes when others come
        shutil.rmtree(out, ignore_errors=True)
        for number in (1, 2, 3):
            end_shard(Shard(number, 3), out, range(number, number + 2))
        draft.mkdir()
        (draft / "part-00000.parquet").write_text("left by a job that was killed")
        other = out.with_name("out.shards") / "00001-of-00004.unfinished" / "plan.json"
        other.parent.mkdir(exist_ok=True)
        other.write_text("{}")
        parts = shards.summaries(Shard(1, 3), str(out))
        assert parts is not None
        monkeypatch.setattr(shards, "score_report", lambda *a, s=seconds: (time.sleep(s), score_report(*a)))
        with ThreadPoolExecutor(3) as pool:
            jobs = [
                pool.submit(shards.join, shard, ScoreFiles(str(out)), parts, {"name": "tiny"})
                for shard in Shard(1, 3).all()
            ]
            answers = [job.result() for job in jobs]
        assert len(writers) == 1
        writers.clear()
        written = json.loads((out / "_summary.json").read_text())
        assert [answer for answer in answers if answer is not None and answer != written] == []
        assert answers.count(None) == (2 if seconds else answers.count(None))
        assert written["images"] == 18
        assert len(files_of("out")) == 4
        assert [file for file in other.parents[1].rglob("*") if file.is_file()] == [other]


def test_shards_become_csv_when_they_are_together(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for number in (1, 2):
        end_shard(Shard(number, 2), out, range(2 * number, 2 * number + 2), format="csv")
    parts = shards.summaries(Shard(1, 2), str(out))
    assert parts is not None
    shards.join(Shard(1, 2), ScoreFiles(str(out)), parts, {"name": "tiny"})
    names = sorted(file.name for file in out.iterdir())
    assert names == ["_report.html", "_summary.json", "errors.csv", "part-00000.csv", "part-00001.csv"]
    assert len((out / "part-00001.csv").read_text().splitlines()) == 5


def test_two_jobs_write_one_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    faces.write_faces_table(tmp_path / "shards", 6, size=64, shards=2)
    out, scale = tmp_path / "out", Scale(engine="local", local_cpus=1, progress=False)
    words = (str(tmp_path / "shards"), str(out), "zoo:fast", scale)
    second = run.score(*words, shard=Shard(2, 2))
    assert (second["images"], second["plan"]["shard"]) == (3, "2/2")
    assert not out.exists()
    assert "shard 2/2 is complete; the last one to end writes" in capsys.readouterr().out
    whole = run.score(*words, shard=Shard(1, 2))
    assert (whole["images"], whole["faces"], whole["plan"]["shards"]) == (6, 6, "2")
    keys = []
    for file in sorted((tmp_path / "shards").iterdir()):
        keys += pq.read_table(file).column("key").to_pylist()
    rows = pa.concat_tables([pq.read_table(part) for part in sorted(out.glob("part-*"))])
    assert rows.column("key").to_pylist() == keys
    assert run.score(*words, shard=Shard(2, 2)) == whole
    assert "is complete already" in capsys.readouterr().out
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out", "shards"]


def test_shards_of_other_settings_are_refused(tmp_path: Path) -> None:
    end_shard(Shard(1, 2), tmp_path / "out", range(1))
    end_shard(Shard(2, 2), tmp_path / "out", range(1), model="other")
    with pytest.raises(UserError, match=r"00002-of-00002: has other settings than shard 1 \(model"):
        shards.summaries(Shard(1, 2), str(tmp_path / "out"))


def test_a_digest_survives_json(tmp_path: Path) -> None:
    digest = finish(ScoreFiles(str(tmp_path / "out")), range(3))
    again = shards.from_json(json.loads(json.dumps(shards.to_json(digest))))
    np.testing.assert_array_equal(again.ages, digest.ages)
    assert (again.failures, again.drawn, again.errors) == (digest.failures, digest.drawn, digest.errors)
