"""Names and files that stores and file systems have although nobody expects them."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from ageray import storage
from ageray.errors import UserError
from ageray.score.inputs import Inputs

NAMES = ("cam1::0001.jpg", "run[1]/a.jpg", "what?.jpg", "star*.jpg", "per%20cent.jpg")


@pytest.fixture
def memory() -> Iterator[str]:
    yield "memory://odd"
    fsspec.filesystem("memory").store.clear()


@pytest.mark.parametrize("name", NAMES)
def test_odd_keys_are_written_and_read(memory: str, tmp_path: Path, name: str) -> None:
    stores = [str(tmp_path)]
    if "::" not in name:  # which fsspec's own store in memory keeps for chains
        stores.append(memory)
    for folder in stores:
        uri = storage.join(folder, name)
        storage.write_bytes(uri, b"photo")
        assert storage.read_bytes(uri) == b"photo"
        assert list(storage.walk(folder)) == [name]


def test_a_chain_of_stores_is_still_one(tmp_path: Path) -> None:
    storage.write_bytes("memory://chain/a.jpg", b"photo")
    assert storage.read_bytes("simplecache::memory://chain/a.jpg") == b"photo"


@pytest.mark.parametrize("name", ["run[1]", "run?", "run*"])
def test_removing_takes_no_name_for_a_pattern(memory: str, tmp_path: Path, name: str) -> None:
    for folder in (memory, str(tmp_path)):
        for other in ("run1/days-of-work", "run12/more"):
            storage.write_bytes(storage.join(folder, other), b"1")
        storage.write_bytes(storage.join(folder, name, "inner", "piece"), b"1")
        storage.remove_tree(storage.join(folder, name))
        assert not storage.exists(storage.join(folder, name))
        assert list(storage.walk(folder)) == ["run1/days-of-work", "run12/more"]


def test_file_urls_may_be_quoted(tmp_path: Path) -> None:
    (tmp_path / "my photos").mkdir()
    (tmp_path / "my photos" / "a.jpg").write_bytes(b"photo")
    (tmp_path / "as%20is.jpg").write_bytes(b"other")
    for host in ("", "localhost"):
        assert storage.read_bytes(f"file://{host}{tmp_path}/my%20photos/a.jpg") == b"photo"
    assert storage.read_bytes(f"file://{tmp_path}/as%20is.jpg") == b"other"


def test_pipes_and_sockets_are_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket.jpg"))
        for name in ("pipe.jpg", "socket.jpg"):
            with pytest.raises(UserError, match="not a regular file"):
                storage.read_bytes(str(tmp_path / name), 10)
    with pytest.raises(UserError, match="not a regular file"):
        storage.read_bytes("/dev/zero", 10)


def test_a_linked_folder_is_searched_once(tmp_path: Path) -> None:
    root, disk = tmp_path / "in", tmp_path / "disk"
    for folder in (root / "own", disk / "deep"):
        folder.mkdir(parents=True)
        (folder / "a.jpg").write_bytes(b"1")
    (root / "more").symlink_to(disk)
    (root / "twice").symlink_to(disk / "deep")
    (root / "own" / "up").symlink_to(root)
    (root / "self").symlink_to("self")
    (disk / "back").symlink_to(root)
    (root / "world").symlink_to(tmp_path)
    (root / "again").symlink_to("own")
    assert list(storage.walk(str(root))) == ["more/deep/a.jpg", "own/a.jpg", "self"]
    assert len(storage.list_files(str(root), (".jpg",))) == 2


def test_a_link_to_a_file_keeps_its_name(tmp_path: Path) -> None:
    """A cache of Hugging Face has links with names to files that are called by their hash."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "1f3a").write_bytes(b"photo")
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "snapshots" / "a.jpg").symlink_to("../blobs/1f3a")
    assert storage.absolute(str(tmp_path / "snapshots" / "a.jpg")).endswith("snapshots/a.jpg")
    assert Inputs.open(str(tmp_path / "snapshots" / "a.jpg")).kind == "photos"


def test_what_is_passed_over_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.jpg", "b.JFIF", "c.heic", "d.mov", "e.MOV", "README", "labels.parquet", "lost+found/x"):
        storage.write_bytes(str(tmp_path / name), b"1")
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if Path(path).name == "lost+found":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    inputs = Inputs.open(str(tmp_path))
    assert inputs.places is not None
    assert inputs.places.photos == 3
    assert inputs.passed_over.files == {".mov": 2, "without an ending": 1, ".parquet": 1}
    assert inputs.passed_over.folders == ["lost+found"]
    assert "2 .mov" in str(inputs.passed_over)
    assert "lost+found (may not be read)" in str(inputs.passed_over)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOSYS, errno.EXDEV])
def test_a_result_replaces_another_where_folders_cannot_be_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """As on a mounted bucket: gcsfuse answers 'Too many open files'."""
    for name, content in (("new/sub/a", b"1"), ("new/last", b"2"), ("out/old", b"3")):
        storage.write_bytes(str(tmp_path / name), content)
    rename = Path.rename

    def refuse(self: Path, target: Any) -> Path:
        if self.name == "new":
            raise OSError(code, os.strerror(code), str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    storage.replace_folder(str(tmp_path / "new"), str(tmp_path / "out"), last="last")
    assert list(storage.walk(str(tmp_path / "out"))) == ["last", "sub/a"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
