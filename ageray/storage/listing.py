"""Which files and folders there are, at local paths and at any fsspec url."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ageray.errors import UserError
from ageray.storage.errors import explained, is_passing, repeat
from ageray.storage.stores import WEB, fsspec_store, is_remote, join, local_path

_S3_PAGE = 1000  # keys of an answer, at most
_LOOKS = 2.0  # seconds for which `exists` and the like are repeated: commands ask them first of all


def exists(uri: str) -> bool:
    """Whether there is a file or a folder (on an object store: any key that starts with `uri`)."""

    def look() -> bool:
        fs, path = fsspec_store(uri)
        if not uri.startswith(WEB):
            return bool(fs.exists(path))
        try:  # fsspec's own answer is no where a server does not answer
            fs.info(path)
        except FileNotFoundError as error:
            if is_passing(error):
                raise
            return False
        return True

    return repeat(uri, look, _LOOKS)


def is_folder(uri: str) -> bool:
    """Whether `uri` is a folder (on an object store: whether any key starts with `uri` and a
    slash).
    """

    def look() -> bool:
        fs, path = fsspec_store(uri)
        if uri.startswith("s3://"):  # s3fs lists the whole folder to find out
            with suppress(FileNotFoundError):  # no such bucket
                return bool(_s3_page(fs, path, 1).get("Contents"))
            return False
        return bool(fs.isdir(path))

    return repeat(uri, look, _LOOKS)


def list_files(uri: str, suffixes: tuple[str, ...] = ()) -> list[str]:
    """All files below a folder, sorted, whose names end in one of `suffixes` (in any case) or,
    without suffixes, all.

    Leaves out files and folders whose name starts with a dot. A linked folder is searched as in
    `walk`. Raises UserError if there is no such folder.
    """
    root = uri.rstrip("/") or "/"
    if not is_folder(root):
        raise UserError(f"{uri}: there is no such folder; check the path or url")
    endings = tuple(map(str.lower, suffixes)) or ("",)
    files = []

    def names() -> list[str]:
        if is_remote(root):
            return list(_names(root))
        return list(_LocalWalk(local_path(root), None).files(""))

    for name in repeat(uri, names):
        if name.lower().endswith(endings) and not name.startswith(".") and "/." not in name:
            files.append(join(root, name))
    return sorted(files)


def below(uri: str, name: str) -> str:
    """The uri of a file that `walk` found below the folder `uri`. A key of a store may begin with a
    slash."""
    return f"{uri.rstrip('/')}/{name}"


def walk(uri: str, unreadable: list[str] | None = None) -> Iterator[str]:
    """The path of every file below a folder, relative to it, in the order of `sorted`.

    Files are listed once, a folder (on S3: 1000 keys) at a time, so that memory does not grow with
    their number. Leaves out files and folders whose name starts with a dot. A linked folder is
    searched if it lies elsewhere, once. unreadable: gets the local folders below `uri` that may not
    be read; without it they are errors. Raises UserError if there is no such folder (on S3 it has
    no files then).
    """
    root = uri.rstrip("/") or "/"
    with explained(uri):
        fs, path = fsspec_store(root)
        if not is_remote(root):
            yield from _LocalWalk(local_path(root), unreadable).files("")
            return
        is_s3 = uri.startswith("s3://")
        for name in _walk_s3(uri, fs, path) if is_s3 else sorted(_names(root)):
            if not name.startswith(".") and "/." not in name:
                yield name


def names_below(uri: str) -> list[str]:
    """The path of every file below a folder, relative to it and sorted, hidden ones too; an empty
    list if there is no such folder.
    """
    root = uri.rstrip("/") or "/"
    if not is_folder(root):
        return []
    return sorted(filter(None, repeat(uri, lambda: list(_names(root)))))


def _names(root: str) -> Iterator[str]:
    """Every file below a folder, as a path relative to it. A local folder that another process
    removes while it is listed has none.
    """
    if is_remote(root):
        fs, path = fsspec_store(root)
        for file in fs.find(path):
            yield file[len(path) :].lstrip("/")
        return

    # fsspec's own walk takes 4 times as long, skips folders that it may not enter, and lists links
    # to folders as files
    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    for folder, _, files in os.walk(local_path(root), onerror=fail):
        inner = Path(folder).relative_to(local_path(root)).as_posix() + "/"
        for name in files:
            yield (inner + name).removeprefix("./")


class _LocalWalk:
    """The files below a local folder."""

    def __init__(self, root: Path, unreadable: list[str] | None) -> None:
        self._root, self._unreadable = root, unreadable
        self._real_root = root.resolve()
        self._linked: set[Path] = set()

    def files(self, inner: str) -> Iterator[str]:
        """Files below the folder `inner` of the root, as paths relative to the root."""
        for name in sorted(self._entries(inner)):
            if name.endswith("/"):
                yield from self.files(name)
            else:
                yield name

    def _entries(self, inner: str) -> list[str]:
        """Files and, with a slash at their end, folders in `inner`."""
        entries = []
        try:
            with os.scandir(self._root / inner) as folder:
                for entry in sorted(folder, key=lambda entry: entry.name):
                    try:
                        is_folder = entry.is_dir()
                    except OSError:  # a link to itself
                        is_folder = False
                    if entry.name.startswith(".") or (is_folder and not self._is_new(entry)):
                        continue
                    entries.append(inner + entry.name + "/" * is_folder)
        except PermissionError:
            if self._unreadable is None or not inner:
                raise
            self._unreadable.append(inner.rstrip("/"))
        return entries

    def _is_new(self, entry: os.DirEntry[str]) -> bool:
        """Whether a folder has not been searched by way of a link. A link leads to a new one only
        outside the root, and not above it, because that would lead back.
        """
        if not entry.is_symlink():
            return not self._linked or Path(entry.path).resolve() not in self._linked
        target = Path(entry.path).resolve()
        if target.is_relative_to(self._real_root) or self._real_root.is_relative_to(target):
            return False
        if any(target.is_relative_to(other) for other in self._linked):
            return False
        self._linked.add(target)
        return True


def _walk_s3(uri: str, fs: Any, path: str) -> Iterator[str]:
    """Keys below a folder of S3. Servers give them in order; a directory bucket does not."""
    start = len(fs.split_path(path)[1]) + 1 if "/" in path else 0
    token, last = "", ""
    while True:
        page = _s3_page(fs, path, _S3_PAGE, token)
        for entry in page.get("Contents", ()):
            name = entry["Key"][start:]
            if name < last:
                raise UserError(f"{uri}: lists its keys in no order; give a manifest of the photos instead")
            last = name
            if name and not name.endswith("/"):  # some writers leave an empty object for a folder
                yield name
        token = page.get("NextContinuationToken", "")
        if not token:
            return


def _s3_page(fs: Any, path: str, keys: int, token: str = "") -> dict[str, Any]:
    """One answer of S3: up to `keys` keys below a folder."""
    bucket, key, _ = fs.split_path(path)
    options = {"ContinuationToken": token} if token else {}
    prefix = f"{key}/" if key else ""
    page: dict[str, Any] = fs.call_s3(
        "list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=keys, **options
    )
    return page
