"""`--retry-errors`: failed photos of a complete result are scored again, and no others; the result
is that of a run in which they did not fail, byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ageray.commands import score as command
from ageray.errors import StoreError, UserError
from ageray.experiment import Scale
from ageray.machine.pool import Outcome
from ageray.score import local, places, run, write
from ageray.stages.columns import scores_schema
from ageray.stages.detect import _carry

LOCAL = Scale(engine="local", local_cpus=1, progress=False)
BROKEN, NOBODY, CROWD, AWAY = "broken", "nobody", "crowd", "away"


class InThisProcess:
    """A pool whose tasks are computed here, by `answers`. `asked` are the photos of all tasks."""

    def __init__(self, ends_after: int = 1000) -> None:
        self.asked: list[str] = []
        self._ends_after = ends_after

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing."""

    def run(self, make: object, tasks: Iterable[Any], processes: int) -> Iterator[Outcome]:
        for number, task in enumerate(tasks):
            if number == self._ends_after:
                raise KeyboardInterrupt
            self.asked += task[0].column("image").to_pylist()
            yield Outcome(task, answers(task[0]))


def answers(photos: pa.Table) -> pa.Table:
    """Rows of scores by the text in a file, and ages by its name."""
    rows, siblings = [], []
    for image in photos.column("image").to_pylist():
        kind = Path(image).read_text()
        errors: list[str | None] = {
            BROKEN: ["cannot decode: cut short"],
            NOBODY: ["no face found"],
            CROWD: [None, "unsure: an age would be a guess", None],
            AWAY: ["unavailable: no answer"],
        }.get(kind, [None])  # type: ignore[assignment,arg-type]
        for face, error in enumerate(errors):
            number = -1 if error and len(errors) == 1 else face
            row = {"key": f"{image}#{number}", "image": image, "face": number, "error": error}
            if error is None:
                row |= {"age": len(image) + float(image[-6:-4]), "age_low": 0.0, "age_high": 99.0}
            rows.append(row)
        siblings.append(len(errors))
    table = pa.Table.from_pylist(rows, schema=scores_schema(False))
    return _carry(photos, table, np.array(siblings, np.int32))


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """150 photos, of which some fail; three segments of two chunks, and parts of 40 rows."""
    monkeypatch.setattr(places, "SEGMENT_PATHS", 70)
    monkeypatch.setattr(write, "ROWS", 40)
    folder = tmp_path / "photos"
    folder.mkdir()
    kinds = {0: BROKEN, 3: CROWD, 63: BROKEN, 64: NOBODY, 69: BROKEN, 70: CROWD, 71: BROKEN, 149: BROKEN}
    for number in range(150):
        (folder / f"photo-{number:03d}.jpg").write_text(kinds.get(number, "face"))
    return folder


@pytest.fixture
def score(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[dict[str, Any], list[str]]]:
    def run_it(location: Path, out: Path, ends_after: int = 1000, **options: Any) -> Any:
        pool = InThisProcess(ends_after)
        monkeypatch.setattr(local, "start", lambda: pool)
        summary = run.score(str(location), str(out), "zoo:fast", LOCAL, **options)
        return summary, sorted(Path(image).stem[-3:] for image in pool.asked)

    return run_it


def tables(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in out.glob("*.parquet")}


def mend(folder: Path, kind: str = "face") -> None:
    for file in folder.iterdir():
        if file.read_text() in (BROKEN, AWAY):
            file.write_text(kind)


def test_only_what_failed_is_scored_again(
    photos: Path, tmp_path: Path, score: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    first, _ = score(photos, out)
    assert first["errors"] == {"cannot decode": 5, "no face found": 1}
    before = tables(out)
    assert len(before) == 5
    mend(photos)
    (photos / "photo-069.jpg").write_text(BROKEN)
    (photos / "photo-071.jpg").write_text(CROWD)
    again, asked = score(photos, out, retry_errors=True)
    assert asked == ["000", "063", "069", "071", "149"]
    assert "5 of 150 photos are tried again" in capsys.readouterr().out
    assert again["errors"] == {"cannot decode": 1, "no face found": 1}
    assert again["plan"] == first["plan"]
    assert again["seconds"] >= first["seconds"]
    fresh, asked = score(photos, tmp_path / "fresh")
    assert len(asked) == 150
    assert tables(out) == tables(tmp_path / "fresh") != before
    assert json.loads((out / "_summary.json").read_text())["images"] == fresh["images"] == 150
    assert not (tmp_path / "out.unfinished").exists()


def test_nothing_failed(photos: Path, tmp_path: Path, score: Any, capsys: pytest.CaptureFixture[str]) -> None:
    mend(photos)
    first, _ = score(photos, tmp_path / "out")
    before = tables(tmp_path / "out")
    again, asked = score(photos, tmp_path / "out", retry_errors=True)
    assert (again, asked, tables(tmp_path / "out")) == (first, [], before)
    assert "has no photo to try again" in capsys.readouterr().out
    assert not (tmp_path / "out.unfinished").exists()


@pytest.mark.parametrize("lost", range(4))
def test_interrupted_and_gone_on_with(lost: int, photos: Path, tmp_path: Path, score: Any) -> None:
    """Also if any one of its pieces is lost: three of the result, one of what came since."""
    out = tmp_path / "out"
    score(photos, out)
    before = tables(out)
    mend(photos)
    with pytest.raises(KeyboardInterrupt):
        score(photos, out, ends_after=2, retry_errors=True)
    assert tables(out) == before
    with pytest.raises(UserError, match="a run with --retry-errors is not complete; give --retry-errors"):
        score(photos, out)
    pieces = sorted((tmp_path / "out.unfinished" / "pieces").iterdir())
    assert len(pieces) == 4
    pieces[lost].unlink()
    score(photos, out, retry_errors=True)
    score(photos, tmp_path / "fresh")
    assert tables(out) == tables(tmp_path / "fresh")


def test_a_store_that_is_away_once_more(photos: Path, tmp_path: Path, score: Any) -> None:
    out = tmp_path / "out"
    score(photos, out)
    before = tables(out)
    mend(photos, AWAY)
    with pytest.raises(StoreError, match="5 photos could not be read"):
        score(photos, out, retry_errors=True)
    assert tables(out) == before
    summary, _ = score(photos, out, retry_errors=True, finish=True)
    assert summary["errors"] == {"unavailable": 5, "no face found": 1}
    mend(photos)
    score(photos, out, retry_errors=True)
    score(photos, tmp_path / "fresh")
    assert tables(out) == tables(tmp_path / "fresh")


def test_a_list_that_names_a_photo_twice(photos: Path, tmp_path: Path, score: Any) -> None:
    names = [
        "photo-003.jpg",
        "photo-003.jpg",
        "photo-000.jpg",
        "photo-000.jpg",
        "photo-003.jpg",
        "photo-000.jpg",
    ]
    manifest = tmp_path / "list.csv"
    manifest.write_text("\n".join(["image", *(str(photos / name) for name in names)]))
    score(manifest, tmp_path / "out")
    mend(photos)
    _, asked = score(manifest, tmp_path / "out", retry_errors=True)
    assert asked == ["000", "000", "000"]
    score(manifest, tmp_path / "fresh")
    assert tables(tmp_path / "out") == tables(tmp_path / "fresh")


def test_a_manifest_with_ids_and_other_columns(photos: Path, tmp_path: Path, score: Any) -> None:
    """Rows of a result are called otherwise than the photos that are tried again."""
    lines = [
        f"photos/{file.name},{number:03},{number / 2}" for number, file in enumerate(sorted(photos.iterdir()))
    ]
    (tmp_path / "people.csv").write_text("\n".join(["image,id,half", *lines]))
    score(tmp_path / "people.csv", tmp_path / "out")
    mend(photos)
    _, asked = score(tmp_path / "people.csv", tmp_path / "out", retry_errors=True)
    assert asked == ["000", "063", "069", "071", "149"]
    score(tmp_path / "people.csv", tmp_path / "fresh")
    assert tables(tmp_path / "out") == tables(tmp_path / "fresh")
    [row, *_] = pq.read_table(tmp_path / "out" / "part-00000.parquet").to_pylist()
    assert (row["image"], row["key"], row["id"], row["half"]) == ("photos/photo-000.jpg", "000", "000", 0.0)


def test_refusals(photos: Path, tmp_path: Path, score: Any) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match="holds no complete result; leave --retry-errors out"):
        score(photos, out, retry_errors=True)
    with pytest.raises(KeyboardInterrupt):
        score(photos, out, ends_after=1)
    with pytest.raises(UserError, match="holds no complete result"):
        score(photos, out, retry_errors=True)
    score(photos, out)
    with pytest.raises(UserError, match=r"is of other settings \(posterior: false, now true\)"):
        score(photos, out, retry_errors=True, posterior=True)
    with pytest.raises(KeyboardInterrupt):
        score(photos, out, ends_after=3, fresh=True)
    with pytest.raises(UserError, match="has a run of another kind; end that first, or give --fresh"):
        score(photos, out, retry_errors=True)
    score(photos, out, fresh=True)
    errors = out / "errors.parquet"
    pq.write_table(pq.read_table(errors).slice(1), errors)
    with pytest.raises(UserError, match="are not those of INPUT; score again with --fresh"):
        score(photos, out, retry_errors=True)
    assert not (tmp_path / "out.unfinished").exists()
    for option in ("--fresh", "--shard=1/2", "--dry-run", "--demo"):
        words = ["in", "--out", "out", "--retry-errors", option]
        with pytest.raises(UserError, match=f"not together with {option.split('=')[0]}"):
            command.main(words[option == "--demo" :])
