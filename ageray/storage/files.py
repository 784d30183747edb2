"""Reads and writes bytes at local paths and at any fsspec url (`s3://`, `memory://`, ...).

Both go through fsspec, except where a local disk can do more: a file is replaced atomically, a
folder is renamed, Parquet is read by Arrow itself. What is missing or forbidden is a UserError that
names the uri. A store that does not answer, or says that it is busy, is asked again with growing
pauses; then it is a StoreError.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from ageray.errors import DamagedError, UserError
from ageray.storage.errors import explained, repeat
from ageray.storage.listing import exists, list_files, names_below
from ageray.storage.stores import WEB, fsspec_store, is_remote, join, local_path

MARKER = "_unfinished"
"""A file of this name marks a folder whose files are being replaced; do not read such a folder."""

CHECKSUM = ".sha256"
"""Ending of the file beside a checked file that has its checksum."""

READERS = 16
"""Threads of a task that fetch files: an object store takes long to answer, and waiting needs no
CPU.
"""

_READ_AHEAD = 8 * 2**20  # bytes of one fetch of a file that is read from front to back
_DRAFT = re.compile(r"\..+\.[0-9a-f]{8}")
_ATTEMPTS = 100  # at a new file whose folder others remove meanwhile
# What mounted volumes and mounted buckets answer when a folder is to be renamed.
_CANNOT_RENAME = (errno.EXDEV, errno.EBUSY, errno.EMFILE, errno.ENOSYS, errno.EOPNOTSUPP)


def unfinished(uri: str) -> str:
    """The folder beside `uri` in which `uri` is written. It replaces `uri` when complete."""
    return uri.rstrip("/") + ".unfinished"


def half_written(uri: str) -> bool:
    """Whether `replace_folder` was interrupted, or is still running, in the folder `uri`."""
    return exists(join(uri, MARKER))


def read_bytes(uri: str, limit: int | None = None) -> bytes:
    """The content of a file, or its first `limit` bytes."""

    def read() -> bytes:
        fs, path = fsspec_store(uri)
        if not is_remote(uri):
            _check_regular(path)
        if uri.startswith("s3"):
            return _of_s3(fs, path, 0, limit)
        if limit is None:
            return bytes(fs.cat_file(path))
        if uri.startswith(WEB):
            return _of_web(fs, path, limit)
        with fs.open(path, "rb", cache_type="none") as file:
            return bytes(file.read(limit))

    return repeat(uri, read)


def read_part(uri: str, start: int, count: int) -> bytes:
    """`count` bytes of a file from `start` on; fewer at its end."""

    def read() -> bytes:
        fs, path = fsspec_store(uri)
        if uri.startswith("s3"):
            return _of_s3(fs, path, start, count)
        end = min(start + count, fs.size(path))
        if end <= start:
            return b""
        return bytes(fs.cat_file(path, start=start, end=end))

    return repeat(uri, read)


def _of_s3(fs: Any, path: str, start: int, count: int | None) -> bytes:
    """`count` bytes of an object from `start` on, or all, by one request: s3fs otherwise asks for
    the size first, and every photo would cost two.
    """
    if count is None:
        return bytes(fs.cat_file(path, max_concurrency=1))
    try:
        return bytes(fs.cat_file(path, start=start, end=start + count))
    except OSError as error:
        answer = getattr(error.__cause__, "response", {})
        if answer.get("Error", {}).get("Code") in ("InvalidRange", "416"):
            return b""  # it ends before `start`, or is empty
        raise


def _of_web(fs: Any, path: str, limit: int) -> bytes:
    """The first `limit` bytes of a web server's file, by one request, as they come."""
    parts: list[bytes] = []
    rest = limit
    with fs.open(path, "rb", block_size=0, size=1) as file:  # a stream; with a size none is asked for
        while rest > 0 and (part := file.read(rest)):
            parts.append(part)
            rest -= len(part)
    return b"".join(parts)


def size(uri: str) -> int:
    """Bytes of a file."""

    def look() -> int:
        fs, path = fsspec_store(uri)
        return int(fs.size(path))

    return repeat(uri, look)


@contextmanager
def reading(uri: str) -> Iterator[IO[bytes]]:
    """A file open for reading from front to back; it may be far larger than memory.

    Errors while it is open become UserErrors too.
    """
    with explained(uri):
        fs, path = fsspec_store(uri)
        with fs.open(path, "rb", block_size=_READ_AHEAD, cache_type="readahead") as file:
            yield file


def read_text(uri: str) -> str:
    """The content of a UTF-8 file, without a byte order mark."""
    try:
        return read_bytes(uri).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{uri}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None


def write_bytes(uri: str, data: bytes) -> None:
    """Writes a whole file or nothing, and makes the folders above it.

    On a local disk the data goes to a draft beside the file, is flushed, and then replaces the
    file.
    """

    def write() -> None:
        if is_remote(uri):
            fs, path = fsspec_store(uri)
            fs.pipe_file(path, data)
            return
        with _draft_of(local_path(uri), data) as draft:
            draft.replace(local_path(uri))

    repeat(uri, write)


def write_checked(uri: str, data: bytes) -> None:
    """Writes a whole file or nothing, and its checksum beside it (`uri` + CHECKSUM).

    The checksum is written first: whenever a writer is killed, `read_checked` takes no file for
    whole that is not.
    """
    write_text(uri + CHECKSUM, hashlib.sha256(data).hexdigest() + "\n")
    write_bytes(uri, data)


def read_checked(uri: str) -> bytes:
    """The content of a file that `write_checked` wrote, or that has no checksum.

    Raises DamagedError if it is not what was written.
    """
    data = read_bytes(uri)
    if exists(uri + CHECKSUM):
        expected = read_bytes(uri + CHECKSUM).strip()
        if hashlib.sha256(data).hexdigest().encode() != expected:
            raise DamagedError(f"{uri}: damaged: its checksum is another than that in {uri}{CHECKSUM}")
    return data


def copy_within(src: str, dst: str) -> None:
    """Makes `dst` a copy of the file `src` of the same store; on a local disk no data is copied."""

    def copy() -> None:
        if is_remote(src):
            fs, path = fsspec_store(src)
            fs.cp_file(path, fsspec_store(dst)[1])
            return
        local_path(dst).unlink(missing_ok=True)
        _link(local_path(src), local_path(dst))

    repeat(dst, copy)


def create(uri: str, data: bytes) -> bool:
    """Writes a whole file if there is none of this name; returns whether it did.

    Of several processes that create one file at once only one succeeds on a local disk, and on an
    S3 server that knows conditional writes (AWS does).
    """

    def write() -> bool:
        if not is_remote(uri):
            with _draft_of(local_path(uri), data) as draft:
                return _link(draft, local_path(uri))
        if exists(uri):
            return False
        fs, path = fsspec_store(uri)
        if not uri.startswith("s3"):
            fs.pipe_file(path, data)
            return True
        try:
            fs.pipe_file(path, data, mode="create")
        except OSError:
            if not exists(uri):
                raise
            return False
        return True

    return repeat(uri, write)


def is_draft(name: str) -> bool:
    """Whether a file of this name is what a write that was killed left behind on a local disk."""
    return _DRAFT.fullmatch(name) is not None


@contextmanager
def _draft_of(target: Path, data: bytes) -> Iterator[Path]:
    """A file beside `target` with this content, flushed to the disk; removed in the end."""
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        with _open_new(draft) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield draft
    finally:
        draft.unlink(missing_ok=True)


def _open_new(path: Path) -> IO[bytes]:
    """A new file in a folder that is made. Another process may remove the folder, which is empty,
    before the file is there; then it is made again.
    """
    for _ in range(_ATTEMPTS):
        with suppress(FileNotFoundError, FileExistsError):  # mkdir finds it, and then not
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.open("wb")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("wb")


def _link(source: Path, target: Path) -> bool:
    """Gives a file the further name `target` unless there is such a file; returns whether it did.

    On a file system without hard links (mounted buckets have none) `target` is a copy.
    """
    try:
        os.link(source, target)
    except FileExistsError:
        return False
    except OSError:
        try:
            with source.open("rb") as content, target.open("xb") as file:
                shutil.copyfileobj(content, file)
        except FileExistsError:
            return False
    return True


def write_text(uri: str, text: str) -> None:
    """Writes a whole UTF-8 file or nothing."""
    write_bytes(uri, text.encode())


def make_folder(uri: str) -> None:
    """Makes a folder and the folders above it. An object store needs none."""
    if not is_remote(uri):
        with explained(uri):
            local_path(uri).mkdir(parents=True, exist_ok=True)


def copy_tree(src: str, dst: str) -> None:
    """Copies every file below `src` to the same path below `dst`; the two may be on different
    stores.
    """
    for file in list_files(src):
        write_bytes(join(dst, file[len(src.rstrip("/")) + 1 :]), read_bytes(file))


def remove_tree(uri: str) -> None:
    """Removes a folder with everything below it. Does nothing if there is none."""
    remove(uri, names_below(uri))


def remove(folder: str, names: Sequence[str]) -> None:
    """Removes files of a folder by their exact names, then every folder that is empty without them.

    names: relative to `folder`. A file that is gone already is no error.
    """
    if is_remote(folder):
        fs, root = fsspec_store(folder)

        def remove_key(name: str) -> None:
            with suppress(FileNotFoundError):
                fs.rm_file(f"{root}/{name}")  # `rm` would take `*`, `?` and `[` for patterns

        def remove_name(name: str) -> None:
            repeat(join(folder, name), lambda: remove_key(name))

        with ThreadPoolExecutor(READERS) as pool:
            list(pool.map(remove_name, names))
        _remove_empty(fs, root)
        return
    local = local_path(folder)
    with explained(folder):
        for name in names:
            (local / name).unlink(missing_ok=True)
        for inner, _, _ in os.walk(local, topdown=False):
            with suppress(OSError):  # not empty
                Path(inner).rmdir()


def _remove_empty(fs: Any, root: str) -> None:
    """Removes a folder that has no file, on a store that knows folders (as `memory://` does)."""
    with suppress(OSError, NotImplementedError):
        if fs.isdir(root) and not fs.find(root):
            fs.rm(root, recursive=True)


def replace_folder(src: str, dst: str, last: str) -> None:
    """Replaces the folder `dst` by the finished folder `src` of the same store.

    A local folder is renamed. On an object store, and if `dst` is a mounted volume, the files are
    copied one by one, the one named `last` at the end. Until then `dst` has a file `_unfinished`,
    so that nobody reads a part of it.
    """
    with explained(dst):
        try:
            if not is_remote(dst):
                _swap(local_path(src), local_path(dst))
                return
        except OSError as error:
            if error.errno not in _CANNOT_RENAME:
                raise
    _refill(src, dst, last)


def _swap(src: Path, dst: Path) -> None:
    dst.parent.mkdir(parents=True, exist_ok=True)
    old = dst.with_name(f".{dst.name}.{uuid.uuid4().hex[:8]}")
    if dst.exists():
        dst.rename(old)
    try:
        src.rename(dst)
    except OSError:
        if old.exists():
            old.rename(dst)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _refill(src: str, dst: str, last: str) -> None:
    write_text(join(dst, MARKER), "Being written; if nothing is writing here, run the command again.\n")
    with explained(dst):
        fs, target = fsspec_store(dst)
        _, origin = fsspec_store(src)
        for path in fs.find(target):
            if not path.endswith("/" + MARKER):
                fs.rm_file(path)
        files = {path.removeprefix(origin) for path in fs.find(origin)}
        files -= {"", "/"}  # some writers leave an empty object with the name of the folder

        def copy_one(name: str) -> None:
            if not is_remote(dst):
                Path(target + name).parent.mkdir(parents=True, exist_ok=True)
            fs.cp_file(origin + name, target + name)

        with ThreadPoolExecutor(READERS) as pool:
            list(pool.map(copy_one, sorted(files - {f"/{last}"})))
        copy_one(f"/{last}")
        fs.rm_file(f"{target}/{MARKER}")
    remove_tree(src)


def _check_regular(path: str) -> None:
    """Raises UserError for a pipe, a socket or a device, whose reading might never end."""
    mode = os.stat(path).st_mode  # noqa: PTH116  # a path object would take longer than the call
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UserError(f"{path}: not a regular file but a pipe, a socket or a device; take it away")
