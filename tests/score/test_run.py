"""Scoring a collection: real photos, a real detector, a real (untrained) model, a real Ray."""

from __future__ import annotations

import http.server
import io
import json
import os
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from moto.server import ThreadedMotoServer

from ageray import bundle, schema
from ageray.commands import score as job
from ageray.errors import StoreError, UserError
from ageray.faces.canvases import face_canvases
from ageray.faces.detect import YuNet
from ageray.faces.images import decode
from ageray.predictor import Predictor
from ageray.score import pipeline, results, run
from ageray.score.files import PAGE
from ageray.score.inputs import Inputs
from ageray.synthetic import faces as synthetic_faces
from ageray.synthetic.demo import draw_demo
from tests.score.small import ALIGN, DETECT, LOCAL, SCALE, find, listed, table

BAD = {
    "empty.jpg": "cannot decode: empty file",
    "text.jpg": "cannot decode: not an image",
    "nobody.png": "no face found",
}


@pytest.fixture(scope="module")
def scored(photos: Path, model: str, ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of scores of `photos`."""
    out = tmp_path_factory.mktemp("out") / "scores"
    run.score(str(photos), str(out), model, SCALE, posterior=True)
    return out


# --- the whole -----------------------------------------------------------------------------------


def test_no_photo_is_lost(scored: Path, photos: Path) -> None:
    rows, summary = table(scored), json.loads((scored / "_summary.json").read_text())
    files = {str(file) for file in photos.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg", ".png")}
    assert set(rows.column("image").to_pylist()) == files
    assert summary["images"] == len(files) == 9
    expected = sum(
        len(YuNet(DETECT).detect(decode(Path(file).read_bytes(), DETECT.max_side)))
        for file in _readable(files)
    )
    assert (
        summary["faces"]
        == expected
        == rows.column("age").drop_null().length()
        == rows.column("error").null_count
    )
    assert rows.num_rows == summary["faces"] + 4
    assert summary["errors"] == {"cannot decode": 3, "no face found": 1}
    failed = {row["image"]: row for row in rows.to_pylist() if row["error"] is not None}
    for name, error in BAD.items():
        row = failed[str(photos / name)]
        assert (row["error"], row["face"], row["key"]) == (error, -1, f"{photos / name}#-1")
        assert all(
            row[column] is None
            for column in ("age", "age_low", "age_high", "box", "landmarks", "detection", "posterior")
        )
    assert failed[str(photos / "more" / "cut.JPG")]["error"].startswith(
        "cannot decode: OSError: image file is truncated"
    )


def _readable(files: set[str]) -> list[str]:
    return [file for file in files if Path(file).name not in (*BAD, "cut.JPG")]


def test_table_has_its_schema_and_says_which_model_made_it(scored: Path, model: str) -> None:
    rows = table(scored)
    assert rows.schema.remove_metadata().equals(schema.SCORES.append(schema.POSTERIOR))
    assert json.loads(rows.schema.metadata[b"ageray"])["identity"] == bundle.load(model).identity
    assert len(set(rows.column("key").to_pylist())) == rows.num_rows
    totals = [sum(posterior) for posterior in rows.column("posterior").to_pylist() if posterior is not None]
    np.testing.assert_allclose(totals, 1, atol=1e-4)
    assert sorted(path.name for path in scored.iterdir()) == [
        "_report.html",
        "_summary.json",
        "errors.parquet",
        "part-00000.parquet",
    ]
    assert pq.read_table(scored / "part-00000.parquet").column("error").null_count == rows.num_rows - 4
    assert not scored.with_name("scores.unfinished").exists()
    assert "Ages of the faces in" in (scored / PAGE).read_text()


def test_ages_are_those_of_the_predictor(scored: Path, model: str) -> None:
    loaded = bundle.load(model)
    predictor, detector = Predictor(loaded, device="cpu", threads=1), YuNet(DETECT)
    rows = [row for row in table(scored).to_pylist() if row["error"] is None]
    for image in {row["image"] for row in rows}:
        content = Path(image).read_bytes()
        faces = sorted(
            detector.detect(decode(content, DETECT.max_side)), key=lambda face: face.box[0] + face.box[2]
        )
        points, boxes = np.stack([face.points for face in faces]), np.stack([face.box for face in faces])
        canvases = face_canvases(content, points, boxes, ALIGN)
        ages = predictor.predict(canvases.pixels, canvases.points, canvases.box)
        own = sorted((row for row in rows if row["image"] == image), key=lambda row: row["face"])
        assert [row["face"] for row in own] == list(range(len(faces)))
        np.testing.assert_allclose([row["age"] for row in own], ages.age, atol=1e-3)
        np.testing.assert_allclose([row["age_low"] for row in own], ages.low, atol=1e-3)
        np.testing.assert_allclose([row["age_high"] for row in own], ages.high, atol=1e-3)
        np.testing.assert_allclose([row["box"] for row in own], boxes, atol=1e-3)
    assert np.ptp([row["age"] for row in rows]) > 0.5  # the network does tell these faces apart


def test_the_same_again_is_done_and_a_change_is_refused(
    scored: Path,
    photos: Path,
    model: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = {path.name: path.read_bytes() for path in scored.iterdir()}
    monkeypatch.setattr(run, "_engine", lambda *_: pytest.fail("nothing is to be computed"))
    words = [str(photos), "--out", str(scored), "--model", model, "--posterior"]
    job.main(words)
    output = capsys.readouterr().out
    assert "is complete already" in output
    assert "to look at:" in output
    changes = {
        "detector.threshold: 0.6, now 0.8": [*words, "data.detect.threshold=0.8"],
        "posterior: true, now false": words[:-1],
        "input.photos: 9, now 3": [str(photos / "more"), *words[1:]],
        'detect: "auto", now "always"': [*words, "--detect", "always"],
    }
    for change, changed in changes.items():
        with pytest.raises(UserError, match=r"holds a result of other settings \(.*\); .*--fresh") as caught:
            job.main(changed)
        assert change in str(caught.value)
    assert {path.name: path.read_bytes() for path in scored.iterdir()} == before
    (scored / "diary.txt").write_text("mine")
    for arguments in (words, [*words, "--fresh"]):
        with pytest.raises(UserError, match=r"holds diary.txt, which ageray score did not write"):
            job.main(arguments)
    (scored / "diary.txt").unlink()


def test_an_interrupted_run_goes_on_and_leaves_the_earlier_result_until_then(
    photos: Path, model: str, ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, draft = tmp_path / "out", tmp_path / "out.unfinished"
    job.main(
        [
            str(photos / "nobody.png"),
            "--out",
            str(out),
            "--model",
            model,
            "scale.progress=false",
            "scale.engine=local",
        ]
    )
    assert json.loads((out / "_summary.json").read_text())["errors"] == {"no face found": 1}
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "score_report", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run.score(str(photos / "more"), str(out), model, SCALE, fresh=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    left = json.loads((draft / "progress.json").read_text())
    assert (left["state"], left["done"], left["total"]) == ("interrupted", 3, 3)
    with pytest.raises(UserError, match=r"unfinished was begun otherwise \(posterior: false, now true\)"):
        run.score(str(photos / "more"), str(out), model, SCALE, posterior=True)
    monkeypatch.setattr(pipeline, "detect_faces", lambda *_: pytest.fail("every photo is done"))
    summary = run.score(str(photos / "more"), str(out), model, SCALE)
    assert (summary["images"], summary["errors"]) == (3, {"cannot decode": 1})
    assert summary["seconds"] >= left["seconds"]
    assert table(out).num_rows == summary["faces"] + 1
    assert not draft.exists()


def test_face_shards_keep_their_keys_and_landmarks(model: str, tmp_path: Path) -> None:
    """With Ray the rows are equal (tests/score/test_local.py)."""
    synthetic_faces.write_faces_table(tmp_path / "shards", 7, shards=2)
    summary = run.score(str(tmp_path / "shards"), str(tmp_path / "out"), model, LOCAL)
    assert (summary["images"], summary["faces"], summary["errors"]) == (7, 7, {})
    shards = pa.concat_tables(
        [pq.read_table(path) for path in sorted((tmp_path / "shards").iterdir())]
    ).sort_by("key")
    rows = table(tmp_path / "out")
    assert rows.column("key").to_pylist() == shards.column("key").to_pylist()
    assert rows.column("landmarks").to_pylist() == shards.column("landmarks").to_pylist()
    assert rows.column("detection").null_count == 7
    assert set(rows.column("image").to_pylist()) == {str(path) for path in (tmp_path / "shards").iterdir()}
    digest = results.digest_of(rows)
    assert len(digest.drawn) == 7
    pictures = dict(zip(shards.column("key").to_pylist(), shards.column("image").to_pylist(), strict=True))
    assert {photo.key: content for photo, content in results.contents(digest.drawn)} == pictures


def test_paths_that_cannot_be_read_are_listed(photos: Path, tmp_path: Path) -> None:
    rows = find(listed(photos / "photo-00000.jpg", tmp_path / "gone.jpg", "")).to_pylist()
    assert [row["error"] for row in rows if row["image"] == str(tmp_path / "gone.jpg")] == [
        "cannot read: not found; check the path or url"
    ]
    assert [row["error"] for row in rows if row["image"] == ""] == ["cannot read: no path is given"]


# --- mistakes ------------------------------------------------------------------------------------


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def _other_table() -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"photo": ["a.jpg"], "age": [3]}), file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing", None, "not found; check the path"),
        ("folder/readme.txt", b"", "holds neither photos .* nor tables"),
        ("photos.tgz", b"", "unpack it and give the folder"),
        ("photos.tar", b"", "cut short: the archive has no end mark"),
        ("photos.doc", b"", "give one of these"),
        ("list.csv", b"img,age\na.jpg,3\n", "needs a column 'image' .*; it has img, age; rename 'img'"),
        ("list.csv", b"", "needs a column 'image' .*; it has none"),
        ("list.csv", b"image\n", "names no photo"),
        ("list.csv", b"image\na,b\n", "cannot be read"),
        ("list.parquet", b"nonsense", "cannot be read as Parquet"),
        ("list.parquet", _other_table(), "needs a column 'image' .*; it has photo, age"),
        ("shards/part.parquet", _other_table(), "needs a column 'image' .*; it has photo, age"),
    ],
)
def test_input_that_is_none(
    name: str, content: bytes | None, message: str, model: str, tmp_path: Path
) -> None:
    if content is not None:
        write(tmp_path / name, content)
    location = tmp_path / name.split("/")[0]
    with pytest.raises(UserError, match=message) as caught:
        run.score(str(location), str(tmp_path / "out"), model, SCALE)
    assert "\n" not in str(caught.value)
    assert str(location) in str(caught.value)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "o"], "INPUT: give one or several, or --demo; got none"),
        (["a", "--demo", "--out", "o"], "INPUT: give one or several, or --demo; got a"),
        (
            ["a", "--out", "o", "align.size=32"],
            "align.size=32: only scale.*, storage.* and data.detect.* can be set here",
        ),
        (["a", "--out", "o", "scale.score_wrokers=2"], "score_workers"),
        (["a", "--out", "o", "--detect", "never"], "a: not found"),
    ],
)
def test_mistakes_on_the_command_line(
    words: Sequence[str], message: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message.replace("*", r"\*")):
        job.main([*words, "--model", model])


def test_never_needs_landmarks_of_the_input(photos: Path, model: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--detect never: .* has no landmarks of its own"):
        run.score(str(photos), str(tmp_path / "out"), model, SCALE, search="never")


def test_exit_code_and_single_line_for_a_mistake(model: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ageray", "score", "nowhere", "--out", "out", "--model", model]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "error: nowhere: not found; check the path or url\n"


@pytest.fixture(scope="module")
def store() -> Iterator[tuple[str, Any]]:
    """The address of an S3-compatible server on loopback, and a client of it; keys in the
    environment, a bucket `faces`.
    """
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
        client.create_bucket(Bucket="faces")
        s3fs.S3FileSystem.clear_instance_cache()
        yield f"http://{host}:{port}", client
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def test_tar_model_and_result_on_a_store(
    store: tuple[str, Any], photos: Path, model: str, tmp_path: Path
) -> None:
    address, client = store
    names = sorted(file.relative_to(photos).as_posix() for file in photos.rglob("*.jpg"))
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        for name in names:
            archive.add(photos / name, name)
    client.upload_file(str(tmp_path / "photos.tar"), "faces", "in/photos.tar")
    for file in Path(model).iterdir():
        client.upload_file(str(file), "faces", f"model/{file.name}")
    command = [
        sys.executable,
        "-m",
        "ageray",
        "score",
        "s3://faces/in",
        "--out",
        "s3://faces/scores",
        "--model",
        "s3://faces/model",
    ]
    settings = [
        f"storage.endpoint_url={address}",
        "scale.threads=1",
        "scale.object_store_mib=256",
        "scale.progress=false",
    ]
    ended = subprocess.run([*command, *settings], cwd=tmp_path, timeout=500, check=False)
    assert ended.returncode == 0
    keys = [
        item["Key"]
        for item in client.list_objects_v2(Bucket="faces")["Contents"]
        if item["Key"].startswith("scores")
    ]
    assert keys == [
        "scores/_report.html",
        "scores/_summary.json",
        "scores/errors.parquet",
        "scores/part-00000.parquet",
    ]
    parts = [io.BytesIO(client.get_object(Bucket="faces", Key=key)["Body"].read()) for key in keys[2:]]
    rows = pa.concat_tables([pq.read_table(part) for part in parts]).to_pylist()
    assert {row["image"] for row in rows} == {f"s3://faces/in/photos.tar/{name}" for name in names}
    assert sum(row["age"] is not None for row in rows) > 0
    page = client.get_object(Bucket="faces", Key="scores/_report.html")["Body"].read().decode()
    assert page.count("data:image/jpeg") == 4


def test_mistakes_with_a_store(
    store: tuple[str, Any], photos: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, client = store
    client.put_object(Bucket="faces", Key="one/photo.jpg", Body=(photos / "photo-00000.jpg").read_bytes())

    def message(inputs: str, out: str) -> str:
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(UserError) as caught:
            run.score(inputs, out, model, SCALE)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    out = tmp_path / "out"
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    assert find(listed("s3://faces/one/photo.jpg")).column("error").null_count > 0
    assert message("s3://missing/photos", str(out)) == "s3://missing/photos: not found; check the path or url"
    assert message("s3://faces/one", "s3://missing/scores").startswith(
        "--out s3://missing/scores: cannot be written ("
    )
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "credentials" in message("s3://faces/one", str(out))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert "s3://faces/one: the store does not answer" in message("s3://faces/one", str(out))
    s3fs.S3FileSystem.clear_instance_cache()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(photos: Path, model: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"file/out.*: Not a directory; check"):
        run.score(str(photos / "nobody.png"), str(tmp_path / "file" / "out"), model, SCALE)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_demo_photos(tmp_path: Path) -> None:
    folder = draw_demo(str(tmp_path / "demo"))
    [uris] = Inputs.open(folder).uris()
    assert uris.num_rows >= 8
    assert find(uris.slice(0, 2)).column("error").null_count > 0
    with pytest.raises(UserError, match="local folders only"):
        draw_demo("s3://bucket/demo")


def test_file_name_that_is_not_text(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.jpg"
    Path(os.fsdecode(name)).write_bytes(b"")
    [uris] = Inputs.open(str(tmp_path)).uris()
    [row] = find(uris).to_pylist()
    assert row["error"] == "cannot read: not found; check the path or url"


class _Photos(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing."""


def test_photos_whose_server_was_away_are_scored_by_the_same_command(
    photos: Path, model: str, ray_local: None, tmp_path: Path
) -> None:
    """The photos of this machine are scored at once and not again; Ray goes on where the pool of
    this machine stopped.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = ("127.0.0.1", free.getsockname()[1])
    name = "photo-00000.jpg"
    remote = f"http://127.0.0.1:{address[1]}/{name}"
    manifest = tmp_path / "m.csv"
    manifest.write_text(f"image\n{photos / name}\n{remote}\n{remote}\n")
    out = str(tmp_path / "out")
    with pytest.raises(StoreError, match=r"2 photos could not be read.*same command goes on.*--finish"):
        run.score(str(manifest), out, model, LOCAL)
    assert not Path(out).exists()
    handler = partial(_Photos, directory=str(photos))
    with http.server.ThreadingHTTPServer(address, handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        summary = run.score(str(manifest), out, model, SCALE)
        server.shutdown()
    assert (summary["images"], summary["errors"]) == (3, {})
    ages = table(Path(out)).to_pylist()
    by_image: dict[str, list[float]] = {}
    for row in ages:
        by_image.setdefault(row["image"], []).append(round(row["age"], 3))
    assert sorted(by_image[remote]) == sorted(by_image[str(photos / name)] * 2)
    summary = run.score(str(manifest), str(tmp_path / "other"), model, LOCAL, finish=True)
    assert summary["errors"] == {"unavailable": 2}
