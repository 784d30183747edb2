"""Photos to face shards and back, through Ray, the command line and an S3 server."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer
from PIL import Image

from ageray import schema, storage
from ageray.commands import prepare as command
from ageray.data import face_shards
from ageray.errors import UserError
from ageray.experiment import Data, Detect, Experiment, Scale
from ageray.faces import detect, images
from ageray.faces.detect import Face
from ageray.prepare import inspect, select, write
from ageray.prepare import run as prepare_run
from ageray.prepare.manifest import Problem
from ageray.synthetic.faces import draw_face

POINTS = "10,20,30,20,20,30,12,40,28,40"
HEADER = "image,age,x0,y0,x1,y1,x2,y2,x3,y3,x4,y4\n"
ROOT = Path(__file__).resolve().parents[2]


def jpeg(seed: int, size: int = 48) -> bytes:
    """Noise that compresses badly; every seed another picture."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=95)
    return out.getvalue()


def manifest_of(folder: Path, photos: dict[str, tuple[bytes | None, str]], points: str = POINTS) -> Path:
    """Writes the photos (None: leaves the file out) and a manifest with their ages and points."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (content, _) in photos.items():
        if content is not None:
            (folder / name).write_bytes(content)
    rows = "".join(f"{name},{age},{points}\n" for name, (_, age) in photos.items())
    (folder / "faces.csv").write_text(HEADER + rows)
    return folder / "faces.csv"


def experiment(source: Path | str, target: Path | str, **data: Any) -> Experiment:
    options = {"name": "set", "source": str(source), "shards": str(target), **data}
    return Experiment(data=Data.model_validate(options), scale=Scale(progress=False, decode_batch=8))


def rows_of(target: Path) -> list[dict[str, Any]]:
    return [row for file in sorted(target.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


# --- decisions, without Ray -----------------------------------------------------------------------


def test_copies() -> None:
    keys = ["c", "a", "b", "d", "e", "f", "g", "h", "i"]
    faces = ["same", "same", "same", "clash", "clash", None, None, "half", "half"]
    ages = [5.0, 5.0, 5.0, 7.0, 8.0, 1.0, 2.0, None, 9.0]
    dropped = dict(select.copies(keys, faces, ages))
    assert dropped == {
        0: Problem("c", "duplicate copy", "identical to a"),
        2: Problem("b", "duplicate copy", "identical to a"),
        3: Problem("d", "conflicting ages", "2 identical files, ages 7, 8"),
        4: Problem("e", "conflicting ages", "2 identical files, ages 7, 8"),
        7: Problem("h", "duplicate copy", "identical to i"),
    }


def drawn(seed: int, size: int = 96, quality: int = 95) -> bytes:
    """A drawn face as a JPEG of `size` pixels; equal seeds show the same picture."""
    out = io.BytesIO()
    Image.fromarray(draw_face(seed, 30 + seed, size=96).pixels).resize((size, size)).save(
        out, "JPEG", quality=quality
    )
    return out.getvalue()


def chosen(
    folder: Path, photos: dict[str, tuple[bytes, float | None]], fingerprint: bool = True
) -> tuple[list[str], dict[str, str]]:
    """The keys that are kept, sorted, and the kind of each that is not."""
    keys = sorted(photos)
    for key in keys:
        (folder / key).write_bytes(photos[key][0])
    points = pa.array([[1.0] * 10] * len(keys), schema.POINTS)
    table = pa.table(
        {
            "key": keys,
            "uri": [str(folder / key) for key in keys],
            "landmarks": points,
            "age": [photos[key][1] for key in keys],
        }
    )
    kept, problems = select.choose(table, inspect.look(table, "source", Detect(), fingerprint))
    return sorted(kept.column("key").to_pylist()), {problem.where: problem.kind for problem in problems}


def test_nearly_the_same_picture_is_kept_once_and_not_at_all_if_the_ages_differ(tmp_path: Path) -> None:
    photos: dict[str, tuple[bytes, float | None]] = {
        "a": (drawn(1), 31),
        "b": (drawn(1, 80), 31),
        "c": (drawn(1, 72, 80), 31),
        "d": (drawn(5), 20),
        "e": (drawn(5, 84), 29),
        "f": (drawn(9), None),
        "g": (drawn(9, 84), 40),
        "h": (drawn(13), 50),
    }
    kept, dropped = chosen(tmp_path, photos)
    other = "near duplicate, other age"
    assert kept == ["a", "g", "h"]
    assert dropped == {
        "b": "near duplicate",
        "c": "near duplicate",
        "d": other,
        "e": other,
        "f": "near duplicate",
    }
    assert chosen(tmp_path, photos, fingerprint=False) == (sorted(photos), {})


def test_people_of_one_photo_are_no_near_copies(tmp_path: Path) -> None:
    (tmp_path / "group.jpg").write_bytes(drawn(1))
    points = pa.array([[1.0] * 10, [9.0] * 10], schema.POINTS)
    table = pa.table(
        {
            "key": ["a", "b"],
            "uri": [str(tmp_path / "group.jpg")] * 2,
            "landmarks": points,
            "age": [20.0, 60.0],
        }
    )
    kept, problems = select.choose(table, inspect.look(table, "source", Detect(), fingerprint=True))
    assert (kept.num_rows, problems) == (2, [])


@pytest.mark.parametrize(
    ("sizes", "parts", "cuts"),
    [
        ([1] * 6, 3, [0, 2, 4, 6]),
        ([1, 1, 10, 1], 2, [0, 3, 4]),
        ([5], 4, [0, 1]),
        ([9, 1, 1, 1], 3, [0, 1, 4]),
    ],
)
def test_cut(sizes: list[int], parts: int, cuts: list[int]) -> None:
    assert select.cut(sizes, parts) == cuts


def test_the_subject_is_large_and_central() -> None:
    def face(x0: float, y0: float, side: float, score: float) -> Face:
        box = np.array([x0, y0, x0 + side, y0 + side], np.float32)
        return Face(box, np.zeros((5, 2), np.float32), score)

    central, corner, small = face(300, 200, 100, 0.8), face(0, 0, 100, 0.95), face(340, 240, 20, 0.99)
    assert detect.subject_of([small, corner, central], 700, 500) is central
    assert detect.subject_of([small, corner], 700, 500) is small
    assert detect.subject_of([corner], 700, 500) is corner


def test_look_lists_what_it_cannot_use(tmp_path: Path) -> None:
    contents = {"good.jpg": jpeg(1), "empty.jpg": b"", "text.jpg": b"not a photo", "cut.jpg": jpeg(2)[:900]}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    names = [*contents, "missing.jpg"]
    photos = pa.table(
        {
            "key": names,
            "uri": [str(tmp_path / name) for name in names],
            "landmarks": pa.array([[1.0] * 10] * len(names), schema.POINTS),
        }
    )
    seen = {row["key"]: row for row in inspect.look(photos, "auto", Detect()).to_pylist()}
    assert {key: row["kind"] for key, row in seen.items()} == {
        "good.jpg": None,
        "empty.jpg": "undecodable",
        "text.jpg": "undecodable",
        "cut.jpg": "undecodable",
        "missing.jpg": "unreadable",
    }
    assert seen["empty.jpg"]["reason"] == "empty file"
    assert "missing.jpg: not found" in seen["missing.jpg"]["reason"]
    assert (seen["good.jpg"]["bytes"], seen["good.jpg"]["landmarks"]) == (len(jpeg(1)), [1.0] * 10)
    detected = inspect.look(photos.slice(0, 1), "detect", Detect()).to_pylist()[0]
    assert (detected["kind"], detected["faces"], detected["landmarks"]) == ("no face", 0, None)


def test_a_file_too_large_for_a_photo_is_not_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 100)
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    photos = pa.table(
        {"key": ["a"], "uri": [str(tmp_path / "a.jpg")], "landmarks": pa.nulls(1, schema.POINTS)}
    )
    assert inspect.look(photos, "auto", Detect()).to_pylist()[0]["kind"] == "undecodable"


# --- prepare --------------------------------------------------------------------------------------


def test_prepare_keeps_drops_and_lists(ray_local: None, tmp_path: Path) -> None:
    photos: dict[str, tuple[bytes | None, str]] = {
        f"{seed}.jpg": (jpeg(seed), str(20 + seed)) for seed in range(40)
    }
    photos["copy.jpg"] = (jpeg(3), "23")
    photos["lie.jpg"] = (jpeg(4), "70")
    photos["empty.jpg"] = (b"", "30")
    photos["empty2.jpg"] = (b"", "31")
    photos["missing.jpg"] = (None, "30")
    photos["old.jpg"] = (jpeg(99), "250")
    source, target = manifest_of(tmp_path / "in", photos), tmp_path / "out"
    report = prepare_run.prepare(experiment(source, target, shard_mib=0.05))
    assert report["counts"] == {
        "photos": 46,
        "kept": 39,
        "bad row": 1,
        "conflicting ages": 2,
        "duplicate copy": 1,
        "undecodable": 2,
        "unreadable": 1,
    }
    assert sum(report["counts"].values()) == 2 * 46
    assert {problem["where"] for problem in report["problems"]} == {
        "row 46",
        *(f"set/{name}.jpg" for name in ("4", "lie", "copy", "empty", "empty2", "missing")),
    }
    assert json.loads((target / "prepare.json").read_text()) == report
    rows = rows_of(target)
    assert sorted(row["key"] for row in rows) == sorted(f"set/{seed}.jpg" for seed in range(40) if seed != 4)
    for row in rows:
        seed = int(Path(row["key"]).stem)
        assert (row["image"], row["age"]) == (jpeg(seed), 20 + seed)
        assert (row["landmarks"], row["box"]) == ([float(value) for value in POINTS.split(",")], None)
    files = sorted(target.glob("*.parquet"))
    assert [file.name for file in files] == [shard["file"] for shard in report["shards"]]
    assert len(files) == round(39 * len(jpeg(0)) / (0.05 * 2**20)) > 1
    assert all(pq.read_schema(file).names == schema.FACES.names for file in files)
    assert not (tmp_path / "out.unfinished").exists()


def test_near_copies_are_dropped_when_asked(ray_local: None, tmp_path: Path) -> None:
    source = manifest_of(
        tmp_path / "in", {"a.jpg": (drawn(1), "30"), "b.jpg": (drawn(1, 80), "30"), "c.jpg": (drawn(5), "40")}
    )
    report = prepare_run.prepare(experiment(source, tmp_path / "out", near_duplicates="drop"))
    assert report["counts"] == {"photos": 3, "kept": 2, "near duplicate": 1}
    assert report["problems"] == [
        {"where": "set/b.jpg", "kind": "near duplicate", "reason": "nearly the same picture as set/a.jpg"}
    ]
    assert sorted(row["key"] for row in rows_of(tmp_path / "out")) == ["set/a.jpg", "set/c.jpg"]


def test_rows_are_mixed_and_the_order_is_fixed_with_either_engine(ray_local: None, tmp_path: Path) -> None:
    source = manifest_of(
        tmp_path / "in", {f"{seed:03d}.jpg": (jpeg(seed, 16), str(seed)) for seed in range(100)}
    )
    prepare_run.prepare(experiment(source, tmp_path / "one"))
    again = experiment(source, tmp_path / "two")
    local = again.model_copy(update={"scale": Scale(engine="local")})
    prepare_run.prepare(local)
    ages = np.array([row["age"] for row in rows_of(tmp_path / "one")])
    assert abs(np.corrcoef(ages, np.arange(100))[0, 1]) < 0.3
    (one,), (two,) = (list((tmp_path / name).glob("*.parquet")) for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_row_groups_are_cut_by_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "_ROW_GROUP", 10_000)
    contents = [jpeg(seed, 32) for seed in range(10)]
    for seed, content in enumerate(contents):
        (tmp_path / f"{seed}.jpg").write_bytes(content)
    looked = inspect.look(
        pa.table(
            {
                "key": [str(seed) for seed in range(10)],
                "uri": [str(tmp_path / f"{seed}.jpg") for seed in range(10)],
                "landmarks": pa.array([[1.0] * 10] * 10, schema.POINTS),
            }
        ),
        "source",
        Detect(),
    )
    rows = looked.append_column("uri", pa.array([str(tmp_path / f"{seed}.jpg") for seed in range(10)]))
    rows = rows.append_column("dataset", pa.array(["set"] * 10))
    rows = rows.append_column("shard", pa.array([str(tmp_path / "x.parquet")] * 10))
    assert write.write_shard(rows).column("error").to_pylist() == [None]
    file = pq.ParquetFile(tmp_path / "x.parquet")
    groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
    assert len(groups) == -(-sum(map(len, contents)) // 10_000) > 1
    assert all(5_000 - 3_000 <= group.total_byte_size <= 10_000 + 3_000 for group in groups)
    assert file.read().column("image").to_pylist() == contents
    (tmp_path / "7.jpg").write_bytes(jpeg(77, 32))
    assert "7.jpg: changed while it was being prepared" in write.write_shard(rows).column("error")[0].as_py()
    lost = rows.set_column(
        rows.column_names.index("shard"), "shard", pa.array([str(tmp_path / "no" / "x")] * 10)
    )
    assert "no/x: cannot be written" in write.write_shard(lost).column("error")[0].as_py()


def test_people_who_share_a_photo_are_no_copies(ray_local: None, tmp_path: Path) -> None:
    (tmp_path / "two.jpg").write_bytes(jpeg(1))
    other = POINTS.replace("10,", "11,", 1)
    rows = f"two.jpg,k1,30,{POINTS}\ntwo.jpg,k2,60,{other}\ntwo.jpg,k3,61,{other}\n"
    (tmp_path / "faces.csv").write_text(HEADER.replace("image,", "image,key,") + rows)
    report = prepare_run.prepare(experiment(tmp_path / "faces.csv", tmp_path / "out"))
    assert [row["key"] for row in rows_of(tmp_path / "out")] == ["k1"]
    assert report["counts"]["conflicting ages"] == 2


def test_mistakes_are_told_before_anything_is_written(ray_local: None, tmp_path: Path) -> None:
    source, target = manifest_of(tmp_path / "in", {"a.jpg": (jpeg(1), "30")}), tmp_path / "out"
    with pytest.raises(UserError, match=r"data\.shards is not set"):
        prepare_run.prepare(Experiment(data=Data(source=str(source))))
    with pytest.raises(UserError, match=r"data\.landmarks=source: .*has no points; use auto or detect"):
        prepare_run.prepare(experiment(tmp_path / "in", target, landmarks="source"))
    with pytest.raises(UserError, match=r"no face is left of 1 photos.*no face found"):
        prepare_run.prepare(experiment(source, target, landmarks="detect"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for fresh in (False, True):
        with pytest.raises(UserError, match=r"holds files of something else"):
            prepare_run.prepare(experiment(source, tmp_path / "mine"), fresh=fresh)
    with pytest.raises(UserError, match=r"is a file; give a folder"):
        prepare_run.prepare(experiment(source, tmp_path / "mine" / "thesis.txt"))
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    assert not target.exists()
    assert not Path(f"{target}.unfinished").exists()


def test_finished_shards_are_rewritten_only_if_asked(ray_local: None, tmp_path: Path) -> None:
    source, target = manifest_of(tmp_path / "in", {"a.jpg": (jpeg(1), "30")}), tmp_path / "out"
    target.mkdir()  # an empty folder is as good as none
    prepare_run.prepare(experiment(source, target))
    manifest_of(tmp_path / "in", {"b.jpg": (jpeg(2), "40")})
    with pytest.raises(UserError, match=r"holds finished shards; use another folder, or --fresh"):
        prepare_run.prepare(experiment(source, target))
    assert [row["age"] for row in rows_of(target)] == [30]
    prepare_run.prepare(experiment(source, target), fresh=True)
    assert [row["age"] for row in rows_of(target)] == [40]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_a_run_that_fails_while_writing_leaves_the_target_alone(
    ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = {f"{seed}.jpg": (jpeg(seed), "30") for seed in range(4)}
    source, target = manifest_of(tmp_path / "in", photos), tmp_path / "out"
    look = prepare_run._look

    def look_and_change(*given: Any) -> pa.Table:
        seen = look(*given)
        (tmp_path / "in" / "2.jpg").write_bytes(jpeg(9))
        return seen

    with monkeypatch.context() as patch:
        patch.setattr(prepare_run, "_look", look_and_change)
        with pytest.raises(UserError, match=r"in/2\.jpg: changed while it was being prepared"):
            prepare_run.prepare(experiment(source, target))
    assert not target.exists()
    assert prepare_run.prepare(experiment(source, target))["counts"]["kept"] == 4
    assert not Path(f"{target}.unfinished").exists()


# --- real faces -----------------------------------------------------------------------------------


def some_of(folder: Path, target: Path, count: int) -> Path:
    """Links to evenly spaced files of a folder."""
    target.mkdir(parents=True)
    files = sorted(folder.iterdir())
    for file in files[:: len(files) // count][:count]:
        (target / file.name).symlink_to(file.resolve())
    return target


def test_real_chips_get_plausible_points(ray_local: None, utkface: Path, tmp_path: Path) -> None:
    source = some_of(utkface, tmp_path / "utk", 40)
    report = prepare_run.prepare(experiment(source, tmp_path / "out"))
    assert report["layout"] == "utkface"
    assert report["counts"]["kept"] >= 38
    for row in rows_of(tmp_path / "out"):
        points, box = np.array(row["landmarks"]).reshape(5, 2), np.array(row["box"])
        assert row["age"] == int(Path(row["key"]).name.split("_")[0])
        # The chips are cropped round an upright face in the middle.
        assert 40 < (points[0] + points[1])[1] / 2 < 120
        assert 20 < points[1, 0] - points[0, 0] < 110
        assert box[0] < points[:, 0].mean() < box[2]


def test_fgnet_points_are_the_sets_own_or_the_detectors(ray_local: None, fgnet: Path, tmp_path: Path) -> None:
    some_of(fgnet / "images", tmp_path / "set" / "images", 24)
    (tmp_path / "set" / "points").symlink_to((fgnet / "points").resolve())
    prepare_run.prepare(experiment(tmp_path / "set", tmp_path / "auto", landmarks="source"))
    report = prepare_run.prepare(experiment(tmp_path / "set", tmp_path / "detect", landmarks="detect"))
    placed = {row["key"]: row for row in rows_of(tmp_path / "auto")}
    found = {row["key"]: row for row in rows_of(tmp_path / "detect")}
    assert len(placed) == 24
    assert len(found) == report["counts"]["kept"] >= 23
    errors = []
    for key, row in found.items():
        own, seen = (np.array(one["landmarks"]).reshape(5, 2) for one in (placed[key], row))
        errors.append(np.linalg.norm(own - seen, axis=1).mean() / np.linalg.norm(own[0] - own[1]))
        assert (placed[key]["box"], row["subject"]) == (None, Path(key).name[:3])
        assert row["box"] is not None
    assert np.median(errors) < 0.08  # of the eye distance


# --- reading back ---------------------------------------------------------------------------------


def test_read_faces_keeps_the_order(ray_local: None, tmp_path: Path) -> None:
    source = manifest_of(tmp_path / "in", {f"{seed}.jpg": (jpeg(seed), "30") for seed in range(30)})
    prepare_run.prepare(experiment(source, tmp_path / "out", shard_mib=0.03))
    written = rows_of(tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.parquet"))) > 2
    assert [
        row["key"] for row in face_shards.read_faces(str(tmp_path / "out"), ["key", "age"]).take_all()
    ] == [row["key"] for row in written]
    whole = face_shards.read_faces(str(tmp_path / "out"))
    assert whole.schema().names == schema.FACES.names
    assert {row["image"] for row in whole.take_all()} == {row["image"] for row in written}


def test_read_faces_says_what_is_wrong(ray_local: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no such folder"):
        face_shards.read_faces(str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"holds no face shards"):
        face_shards.read_faces(str(tmp_path))
    pq.write_table(pa.table({"key": ["a"], "image": ["text"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet: column 'dataset' is missing; it has key, image"):
        face_shards.read_faces(str(tmp_path))
    pq.write_table(pa.table({"key": [["a"]]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"column 'key' is list<.*not string"):
        face_shards.read_faces(str(tmp_path), ["key"])
    (tmp_path / "a.parquet").write_text("no")
    with pytest.raises(UserError, match=r"write face shards with ageray prepare"):
        face_shards.read_faces(str(tmp_path), ["key"])
    storage.write_text(str(tmp_path / storage.MARKER), "")
    with pytest.raises(UserError, match=r"left half written"):
        face_shards.read_faces(str(tmp_path))


# --- the command ----------------------------------------------------------------------------------


def command_line(*words: str, **environment: str) -> subprocess.Popen[str]:
    """`ageray prepare` as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "ageray", "prepare", "scale.progress=false", *words],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow  # the submitted chain goes from store to store in every run
def test_from_s3_to_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    store = boto3.client("s3", region_name="us-east-1")
    store.create_bucket(Bucket="prepare")
    for seed in range(6):
        store.put_object(Bucket="prepare", Key=f"in/{seed}.jpg", Body=jpeg(seed))
    store.put_object(Bucket="prepare", Key="in/empty.jpg", Body=b"")
    names = [f"{seed}.jpg" for seed in range(6)] + ["empty.jpg", "missing.jpg"]
    rows = "".join(f"{name},30,{POINTS}\n" for name in names)
    store.put_object(Bucket="prepare", Key="in/faces.csv", Body=(HEADER + rows).encode())
    words = ("data.source=s3://prepare/in/faces.csv", "data.shards=s3://prepare/out", "data.name=cloud")
    run = command_line(*words, **settings)
    output, errors = run.communicate(timeout=180)
    assert run.returncode == 0, errors
    assert "cloud (layout manifest): 8 photos, 6 faces kept" in output
    assert "1 dropped: undecodable" in output
    assert "1 dropped: unreadable" in output
    found = [
        item["Key"]
        for item in store.list_objects_v2(Bucket="prepare")["Contents"]
        if "/in/" not in f"/{item['Key']}"
    ]
    assert found == ["out/faces-00000-of-00001.parquet", "out/prepare.json"]
    filesystem, path = storage.filesystem("s3://prepare/out/faces-00000-of-00001.parquet")
    table = pq.read_table(path, filesystem=filesystem)
    assert sorted(table.column("key").to_pylist()) == [f"cloud/{seed}.jpg" for seed in range(6)]
    assert set(table.column("image").to_pylist()) == {jpeg(seed) for seed in range(6)}
    server.stop()


def test_killed_in_the_middle(tmp_path: Path) -> None:
    photos = {f"{seed}.jpg": (jpeg(seed, 24), "30") for seed in range(200)}
    source, target = manifest_of(tmp_path / "in", photos), tmp_path / "out"
    draft = Path(f"{target}.unfinished")
    run = command_line(
        f"data.source={source}", f"data.shards={target}", "data.shard_mib=0.002", "data.name=set"
    )
    deadline = time.monotonic() + 300
    while not list(draft.glob("*.parquet")):
        assert run.poll() is None, run.stderr and run.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate(timeout=60)
    assert run.returncode == -signal.SIGKILL
    assert not target.exists(), "the kill came too late to test anything"
    with pytest.raises(UserError, match="no such folder"):
        face_shards.read_faces(str(target))
    time.sleep(1)  # for the killed run's tasks to be gone
    again = experiment(source, target, shard_mib=1)
    report = prepare_run.prepare(again.model_copy(update={"scale": Scale(engine="local")}))
    assert report["counts"] == {"photos": 200, "kept": 200}
    assert len(rows_of(target)) == 200
    assert not draft.exists()


def test_mistakes_end_with_one_line(tmp_path: Path) -> None:
    run = command_line(f"data.source={tmp_path}/none", f"data.shards={tmp_path}/out")
    output, errors = run.communicate(timeout=120)
    assert (run.returncode, output) == (2, "")
    assert errors.splitlines()[-1].startswith(f"error: data.source={tmp_path}/none: does not exist")
    assert "Traceback" not in errors
    assert "ray" not in errors.lower(), "Ray was started for nothing"


def test_help_and_summary(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        command.main(["--help"])
    told = capsys.readouterr().out
    assert all(word in told for word in ("utkface", "manifest", "conflicting ages", "--fresh", "Exit 0"))
    report = {
        "dataset": "set",
        "layout": "utkface",
        "counts": {"photos": 10, "kept": 7, "no face": 3},
        "shards": [{"file": "a", "rows": 7, "bytes": 3 * 2**20}],
        "seconds": 2.0,
        "photos_per_second": 5.0,
        "notes": [{"where": "k", "kind": "several faces", "reason": ""}] * 2,
    }
    assert command.summary(report, "s3://b/out").splitlines() == [
        "set (layout utkface): 10 photos, 7 faces kept",
        "        3 dropped: no face",
        "        2 kept, but: several faces",
        "1 shard, 3 MiB, 2 s, 5 photos/s: s3://b/out",
        "every dropped photo and why: s3://b/out/prepare.json",
    ]


# --- whose folder it is ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["photo.jpg"], "has photo.jpg, which ageray prepare did not write; move it away"),
        (["faces-00000-of-00001.parquet", "prepare.json"], "has finished shards; move it away"),
        (["faces-00000-of-00001.parquet", ".git/x"], "has .git/x, which"),
    ],
)
def test_an_unfinished_folder_of_others_stays(names: list[str], message: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=message):
        prepare_run._check_draft(str(tmp_path))


def test_what_an_ended_run_left_is_replaced(tmp_path: Path) -> None:
    """Also of a version that left no mark."""
    draft = str(tmp_path / "draft")
    (tmp_path / "draft").mkdir()
    (tmp_path / "draft" / "faces-00000-of-00001.parquet").write_text("old")
    for _ in range(2):
        prepare_run._check_draft(draft)
        prepare_run._clear(draft)
        assert [file.name for file in (tmp_path / "draft").iterdir()] == ["prepare.unfinished"]
        (tmp_path / "draft" / "prepare.json").write_text("{}")
    for name in ("notes.txt", "prepare.json"):
        (tmp_path / "draft" / name).write_text("{}")
    with pytest.raises(UserError, match=r"holds files of something else \(notes.txt\)"):
        prepare_run._target(Data(shards=draft), fresh=True)
