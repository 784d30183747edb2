"""Reading, writing and replacing on this machine, in memory and on an S3-compatible server over
HTTP.
"""

from __future__ import annotations

import errno
import os
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from moto.server import ThreadedMotoServer

from ageray import storage
from ageray.errors import DamagedError, StoreError, UserError
from ageray.storage import files, listing, stores


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """`s3://faces` on a server of its own, found through the usual AWS variables."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="faces")
        yield "s3://faces"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture(params=["local", "file", "memory", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place on each kind of store."""
    if request.param == "local":
        return str(tmp_path)
    if request.param == "file":
        return f"file://{tmp_path}"
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}"
    return f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}"


def test_what_is_written_is_read(root: str) -> None:
    file = storage.join(root, "a", "b.bin")
    assert not storage.exists(file)
    storage.write_bytes(file, b"\x00\xffbytes")
    assert storage.read_bytes(file) == b"\x00\xffbytes"
    assert storage.read_bytes(file, 3) == b"\x00\xffb"
    storage.write_text(file, "größer")
    assert storage.read_text(file) == "größer"
    assert storage.exists(file)
    assert not storage.is_folder(file)
    assert storage.is_folder(storage.join(root, "a"))
    storage.write_bytes(storage.join(root, "empty"), b"")
    assert storage.read_bytes(storage.join(root, "empty"), 10) == b""


def test_list_is_recursive_sorted_and_by_suffix(root: str) -> None:
    for name in ("b.JPG", "a/z.jpg", "a.txt", ".hidden.jpg", ".git/x.jpg"):
        storage.write_bytes(storage.join(root, name), b"x")
    plain = [
        file.removeprefix("file://").removeprefix(root.removeprefix("file://"))
        for file in storage.list_files(root)
    ]
    assert plain == ["/a.txt", "/a/z.jpg", "/b.JPG"]
    photos = storage.list_files(root + "/", (".jpg", ".png"))
    assert [file.rsplit("/", 1)[-1] for file in photos] == ["z.jpg", "b.JPG"]
    assert [storage.read_bytes(file) for file in photos] == [b"x", b"x"]


def test_walk_gives_the_same_in_the_same_order(root: str) -> None:
    names = ["b.JPG", "a/z.jpg", "a.txt", "a/b/c.txt", "a-b/c.txt", "a0", ".hidden.jpg", "a/.git/x.jpg"]
    for name in names:
        storage.write_bytes(storage.join(root, name), b"x")
    assert [storage.join(root, name) for name in storage.walk(root + "/")] == storage.list_files(root)


def test_reading_from_s3_takes_one_request(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = f"{s3}/{uuid.uuid4().hex}"
    storage.write_bytes(file, b"content")
    requests: list[str] = []
    call = s3fs.S3FileSystem._call_s3

    async def counted(self: s3fs.S3FileSystem, method: str, *arguments: Any, **options: Any) -> Any:
        requests.append(method)
        return await call(self, method, *arguments, **options)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", counted)
    reads = [
        (lambda: storage.read_bytes(file), b"content"),
        (lambda: storage.read_bytes(file, 3), b"con"),
        (lambda: storage.read_bytes(file, 300), b"content"),
        (lambda: storage.read_part(file, 2, 3), b"nte"),
        (lambda: storage.read_part(file, 5, 30), b"nt"),
        (lambda: storage.read_part(file, 7, 1), b""),
    ]
    for read, content in reads:
        requests.clear()
        assert read() == content
        assert requests == ["get_object"]
    with pytest.raises(UserError, match="not found"):
        storage.read_bytes(f"{file}-none", 3)


def test_a_long_folder_of_s3_is_listed_once(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """25 keys are three answers of 10; to see whether there is a folder takes one key."""
    monkeypatch.setattr(listing, "_S3_PAGE", 10)
    folder = f"{s3}/{uuid.uuid4().hex}"
    client = boto3.client("s3")
    for number in range(25):
        client.put_object(Bucket="faces", Key=f"{folder.removeprefix('s3://faces/')}/{number:04d}.jpg")
    answers: list[int] = []
    call = s3fs.S3FileSystem._call_s3

    async def counted(self: s3fs.S3FileSystem, method: str, *arguments: Any, **options: Any) -> Any:
        answer = await call(self, method, *arguments, **options)
        if method == "list_objects_v2":
            answers.append(answer["KeyCount"])
        return answer

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", counted)
    monkeypatch.setattr(s3fs.S3FileSystem, "call_s3", fsspec.asyn.sync_wrapper(counted))
    assert storage.is_folder(folder)
    assert answers == [1]
    assert len(list(storage.walk(folder))) == 25
    assert answers == [1, 10, 10, 5]


def test_copy_and_remove(root: str, tmp_path: Path) -> None:
    for name in ("one", "in/two"):
        storage.write_text(storage.join(root, "src", name), name)
    other = str(tmp_path / "elsewhere")
    storage.copy_tree(storage.join(root, "src"), other)
    storage.copy_tree(other, storage.join(root, "dst"))
    assert storage.read_text(storage.join(root, "dst", "in", "two")) == "in/two"
    storage.remove_tree(storage.join(root, "dst"))
    assert not storage.exists(storage.join(root, "dst", "one"))
    storage.remove_tree(storage.join(root, "dst"))  # not there: nothing to do
    assert storage.read_text(storage.join(root, "src", "one")) == "one"


def test_parquet_goes_through_the_arrow_filesystem(root: str) -> None:
    folder = storage.join(root, "tables")
    storage.make_folder(folder)
    filesystem, path = storage.filesystem(storage.join(folder, "t.parquet"))
    pq.write_table(pa.table({"a": [1, 2]}), path, filesystem=filesystem)
    assert pq.read_table(path, filesystem=filesystem).column("a").to_pylist() == [1, 2]
    assert [file.rsplit("/", 1)[-1] for file in storage.list_files(folder)] == ["t.parquet"]


def test_replace_folder_leaves_only_the_new(root: str) -> None:
    old, new = storage.join(root, "shards"), storage.join(root, "shards.unfinished")
    for folder, names in ((old, ("old", "report")), (new, ("part", "report"))):
        for name in names:
            storage.write_text(storage.join(folder, name), folder)
    storage.replace_folder(new, old, last="report")
    assert [file.rsplit("/", 1)[-1] for file in storage.list_files(old)] == ["part", "report"]
    assert storage.read_text(storage.join(old, "report")) == new
    assert not storage.exists(new)


@pytest.mark.parametrize("kind", ["mounted", "memory"])
def test_replace_folder_is_marked_unfinished_until_the_last_file(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = str(tmp_path) if kind == "mounted" else f"memory://{uuid.uuid4().hex}"
    old, new = storage.join(root, "shards"), storage.join(root, "draft")
    for name in ("zebra", "report"):
        storage.write_text(storage.join(new, name), "new")
    storage.write_text(storage.join(old, "report"), "old")
    if kind == "mounted":
        # A mounted volume refuses to be renamed; making one needs privileges that a test should not
        # have.
        monkeypatch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(OSError(errno.EBUSY, "busy")))
    fs, _ = stores.fsspec_store(root)
    copy, copied = type(fs).cp_file, list[str]()

    def fail_at_the_last(self: object, src: str, dst: str, **options: object) -> None:
        copied.append(Path(dst).name)
        if Path(dst).name == "report":
            raise OSError("the power went")
        copy(self, src, dst, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(fs), "cp_file", fail_at_the_last)
        with pytest.raises(UserError, match="the power went"):
            storage.replace_folder(new, old, last="report")
    assert copied == ["zebra", "report"]
    assert storage.half_written(old)
    assert not storage.exists(storage.join(old, "report"))
    storage.replace_folder(new, old, last="report")
    assert [Path(file).name for file in storage.list_files(old)] == ["report", "zebra"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "card.json"
    storage.write_text(str(file), "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"card\.json.*No space left"):
        storage.write_text(str(file), "new and longer")
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["card.json"]


def test_mistakes_name_the_uri(root: str) -> None:
    missing = storage.join(root, "missing")
    for call in (storage.read_bytes, storage.read_text, storage.list_files):
        with pytest.raises(UserError, match=r"missing: .*check the path or url"):
            call(missing)
    storage.write_bytes(storage.join(root, "latin"), b"\xe4")
    with pytest.raises(UserError, match=r"latin: not UTF-8"):
        storage.read_text(storage.join(root, "latin"))


def test_mistakes_of_kind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"file or a folder"):
        storage.read_bytes(str(tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file or a folder"):
        storage.write_text(str(tmp_path / "file" / "inner"), "x")
    with pytest.raises(UserError, match=r"nope://x: not a path or url"):
        storage.filesystem("nope://x")


class Refusing(BaseHTTPRequestHandler):
    """An S3 endpoint that lets nobody in."""

    def do_GET(self) -> None:
        body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


def test_missing_forbidden_and_unreachable_are_told_apart(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"no such folder"):
        storage.list_files("s3://another-bucket/x")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(UserError, match=r"secret: access denied.*credentials"):
        storage.read_bytes(f"{s3}/secret")
    server.shutdown()
    server.server_close()
    monkeypatch.setenv("AGERAY_STORE_PATIENCE", "0.2")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StoreError, match=r"does not answer.*network"):
        storage.read_bytes(f"{s3}/x")
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_programming_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("ours")

    monkeypatch.setattr(files, "fsspec_store", broken)
    with pytest.raises(KeyError):
        storage.read_bytes("memory://x")


def test_join_and_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert storage.join("/", "a") == "/a"
    assert storage.join("s3://b/", "a", "c.d") == "s3://b/a/c.d"
    assert storage.join("memory://", "a") == "memory://a"
    assert storage.join("/data", "/elsewhere/x") == "/elsewhere/x"
    assert storage.join("/data", "s3://b/x") == "s3://b/x"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert storage.absolute("link/x") == str(tmp_path.resolve() / "real" / "x")
    assert storage.absolute(f"file://{tmp_path}") == str(tmp_path.resolve())
    assert storage.absolute("s3://b/x") == "s3://b/x"
    assert storage.is_remote("s3://b")
    assert not storage.is_remote("C/plain")


def test_a_checked_file_tells_that_it_is_damaged(root: str) -> None:
    file = storage.join(root, "fold.parquet")
    storage.write_checked(file, b"what was paid for")
    assert storage.read_checked(file) == b"what was paid for"
    storage.write_bytes(file, b"what was paid fox")
    with pytest.raises(DamagedError, match=r"fold\.parquet: damaged"):
        storage.read_checked(file)
    storage.remove(root, ["fold.parquet.sha256"])
    assert storage.read_checked(file) == b"what was paid fox"  # of a version that wrote no checksum


def test_a_file_is_created_once(root: str) -> None:
    file = storage.join(root, "lease")
    assert storage.create(file, b"one")
    assert not storage.create(file, b"two")
    assert storage.read_bytes(file) == b"one"
    storage.copy_within(file, storage.join(root, "other"))
    storage.copy_within(file, storage.join(root, "other"))
    assert storage.names_below(root) == ["lease", "other"]


def test_removing_goes_by_exact_names(root: str) -> None:
    names = ["a[1].x", "a1.x", "in/b*.x", "in/bb.x", ".hidden"]
    for name in names:
        storage.write_bytes(storage.join(root, "folder", name), b"x")
    folder = storage.join(root, "folder")
    assert storage.names_below(folder) == sorted(names)
    storage.remove(folder, ["a[1].x", "in/b*.x", "gone"])
    assert storage.names_below(folder) == [".hidden", "a1.x", "in/bb.x"]
    storage.remove_tree(folder)
    assert storage.names_below(folder) == []
    assert not storage.exists(folder)
