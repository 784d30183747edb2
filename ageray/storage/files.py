"""Reads and writes bytes at local paths and at any fsspec url (`s3://`, `memory://`, ...).

This is the only module that tells them apart. Both go through fsspec, except where a local disk can
do more: a file is replaced atomically, a folder is renamed, Parquet is read by Arrow itself.

S3 takes credentials, region and endpoint from the usual AWS variables (`AWS_ACCESS_KEY_ID`,
`AWS_REGION`, `AWS_ENDPOINT_URL`, ...). What is missing or forbidden is a UserError that names the
uri. A store that does not answer, or says that it is busy, is asked again with growing pauses; then
it is a StoreError.
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
from urllib.parse import unquote

import fsspec
import pyarrow.fs
from fsspec.implementations.local import LocalFileSystem

from ageray.errors import DamagedError, UserError
from ageray.storage.errors import explained, is_passing, repeat

MARKER = "_unfinished"
"""A file of this name marks a folder whose files are being replaced; do not read such a folder."""

ENDPOINT = "AWS_ENDPOINT_URL"
"""The variable with the address of the S3 server, which every client of S3 reads."""

CHECKSUM = ".sha256"
"""Ending of the file beside a checked file that has its checksum."""

READERS = 16
"""Threads of a task that fetch files: an object store takes long to answer, and waiting needs no
CPU.
"""

_S3_PAGE = 1000  # keys of an answer, at most
_READ_AHEAD = 8 * 2**20  # bytes of one fetch of a file that is read from front to back
_LOCAL = LocalFileSystem()
_DRAFT = re.compile(r"\..+\.[0-9a-f]{8}")
_ATTEMPTS = 100  # at a new file whose folder others remove meanwhile
_LOOKS = 2.0  # seconds for which `exists` and the like are repeated: commands ask them first of all
_WEB = ("http://", "https://")
_CONNECT, _SILENCE, _LONGEST = 15, 60, 600  # seconds until a web server accepts, goes on, ends
# What mounted volumes and mounted buckets answer when a folder is to be renamed.
_CANNOT_RENAME = (errno.EXDEV, errno.EBUSY, errno.EMFILE, errno.ENOSYS, errno.EOPNOTSUPP)
# A chain of stores, as fsspec writes it: `simplecache::s3://...`, `zip://a.jpg::s3://...`.
# Elsewhere `::` is a part of a name.
_CHAIN = re.compile(r"^[\w+.-]+::|::[\w+.-]+://")


def use_endpoint(url: str | None) -> None:
    """Makes `s3://` mean the server at `url`, in this process and its children. None changes
    nothing.

    Raises UserError if `url` is not the address of a server.
    """
    if url is None:
        return
    if not url.startswith(_WEB):
        raise UserError(
            f"storage.endpoint_url={url}: no address of a server; write http://HOST:PORT or https://HOST"
        )
    os.environ[ENDPOINT] = url


def is_remote(uri: str) -> bool:
    """Whether `uri` is on a store other than this machine's file system."""
    return "://" in uri and not uri.startswith(("file://", "local://"))


def absolute(uri: str) -> str:
    """`uri` as an absolute path with links followed, for processes in other folders; a remote url
    unchanged.
    """
    if is_remote(uri):
        return uri
    path = _local(uri)
    if path.is_symlink() and path.is_file():  # its name has the ending; the file's may be a hash
        return str(path.parent.resolve() / path.name)
    return str(path.resolve())


def join(uri: str, *parts: str) -> str:
    """`uri` extended by path parts. An absolute path or a url among them starts anew."""
    for part in parts:
        if "://" in part or part.startswith("/"):
            uri = part
        elif uri.endswith("/"):
            uri += part
        else:
            uri = f"{uri}/{part}"
    return uri


def unfinished(uri: str) -> str:
    """The folder beside `uri` in which `uri` is written. It replaces `uri` when complete."""
    return uri.rstrip("/") + ".unfinished"


def half_written(uri: str) -> bool:
    """Whether `replace_folder` was interrupted, or is still running, in the folder `uri`."""
    return exists(join(uri, MARKER))


def filesystem(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """Arrow's file system for Parquet, and the path within it.

    For S3 it is Arrow's own, which reads much faster than s3fs.
    """
    if not is_remote(uri):
        return pyarrow.fs.LocalFileSystem(), absolute(uri)
    with explained(uri):
        if uri.startswith("s3://"):
            return _s3(uri), uri.removeprefix("s3://").rstrip("/")
        fs, path = _fsspec(uri)
        return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs)), path


def exists(uri: str) -> bool:
    """Whether there is a file or a folder (on an object store: any key that starts with `uri`)."""

    def look() -> bool:
        fs, path = _fsspec(uri)
        if not uri.startswith(_WEB):
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
        fs, path = _fsspec(uri)
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
        return list(_LocalWalk(_local(root), None).files(""))

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
        fs, path = _fsspec(root)
        if not is_remote(root):
            yield from _LocalWalk(_local(root), unreadable).files("")
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


def read_bytes(uri: str, limit: int | None = None) -> bytes:
    """The content of a file, or its first `limit` bytes."""

    def read() -> bytes:
        fs, path = _fsspec(uri)
        if not is_remote(uri):
            _check_regular(path)
        if uri.startswith("s3"):
            return _of_s3(fs, path, 0, limit)
        if limit is None:
            return bytes(fs.cat_file(path))
        if uri.startswith(_WEB):
            return _of_web(fs, path, limit)
        with fs.open(path, "rb", cache_type="none") as file:
            return bytes(file.read(limit))

    return repeat(uri, read)


def read_part(uri: str, start: int, count: int) -> bytes:
    """`count` bytes of a file from `start` on; fewer at its end."""

    def read() -> bytes:
        fs, path = _fsspec(uri)
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
        fs, path = _fsspec(uri)
        return int(fs.size(path))

    return repeat(uri, look)


@contextmanager
def reading(uri: str) -> Iterator[IO[bytes]]:
    """A file open for reading from front to back; it may be far larger than memory.

    Errors while it is open become UserErrors too.
    """
    with explained(uri):
        fs, path = _fsspec(uri)
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
            fs, path = _fsspec(uri)
            fs.pipe_file(path, data)
            return
        with _draft_of(_local(uri), data) as draft:
            draft.replace(_local(uri))

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
            fs, path = _fsspec(src)
            fs.cp_file(path, _fsspec(dst)[1])
            return
        _local(dst).unlink(missing_ok=True)
        _link(_local(src), _local(dst))

    repeat(dst, copy)


def create(uri: str, data: bytes) -> bool:
    """Writes a whole file if there is none of this name; returns whether it did.

    Of several processes that create one file at once only one succeeds on a local disk, and on an
    S3 server that knows conditional writes (AWS does).
    """

    def write() -> bool:
        if not is_remote(uri):
            with _draft_of(_local(uri), data) as draft:
                return _link(draft, _local(uri))
        if exists(uri):
            return False
        fs, path = _fsspec(uri)
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
            _local(uri).mkdir(parents=True, exist_ok=True)


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
        fs, root = _fsspec(folder)

        def remove_key(name: str) -> None:
            with suppress(FileNotFoundError):
                fs.rm_file(f"{root}/{name}")  # `rm` would take `*`, `?` and `[` for patterns

        def remove_name(name: str) -> None:
            repeat(join(folder, name), lambda: remove_key(name))

        with ThreadPoolExecutor(READERS) as pool:
            list(pool.map(remove_name, names))
        _remove_empty(fs, root)
        return
    local = _local(folder)
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
                _swap(_local(src), _local(dst))
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
        fs, target = _fsspec(dst)
        _, origin = _fsspec(src)
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


def _local(uri: str) -> Path:
    path = uri.removeprefix("local://")
    if path.startswith("file://"):
        path = path.removeprefix("file://").removeprefix("localhost")
        if "%" in path and not Path(path).exists():
            path = unquote(path)
    return Path(path).expanduser()


def _check_regular(path: str) -> None:
    """Raises UserError for a pipe, a socket or a device, whose reading might never end."""
    mode = os.stat(path).st_mode  # noqa: PTH116  # a path object would take longer than the call
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UserError(f"{path}: not a regular file but a pipe, a socket or a device; take it away")


def _names(root: str) -> Iterator[str]:
    """Every file below a folder, as a path relative to it. A local folder that another process
    removes while it is listed has none.
    """
    if is_remote(root):
        fs, path = _fsspec(root)
        for file in fs.find(path):
            yield file[len(path) :].lstrip("/")
        return

    # fsspec's own walk takes 4 times as long, skips folders that it may not enter, and lists links
    # to folders as files
    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    for folder, _, files in os.walk(_local(root), onerror=fail):
        inner = Path(folder).relative_to(_local(root)).as_posix() + "/"
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


def _fsspec(uri: str) -> tuple[Any, str]:
    """The file system of fsspec, and the path within it."""
    if not is_remote(uri):
        return _LOCAL, str(_local(uri))
    # a cached listing would hide what other processes write
    options: dict[str, Any] = {}
    if uri.startswith("s3"):
        options = {"use_listings_cache": False}
    elif uri.startswith(_WEB):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=_LONGEST, sock_connect=_CONNECT, sock_read=_SILENCE)
        options = {"client_kwargs": {"timeout": timeout}}
    if _CHAIN.search(uri):
        fs, path = fsspec.core.url_to_fs(uri, **options)
    else:
        store = fsspec.get_filesystem_class(uri.partition("://")[0])
        fs = store(**store._get_kwargs_from_urls(uri), **options)
        path = store._strip_protocol(uri)
    fs.invalidate_cache()
    return fs, path.rstrip("/")


def _s3(uri: str) -> pyarrow.fs.FileSystem:
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get(ENDPOINT)
    if not region and not endpoint:
        region = pyarrow.fs.resolve_s3_region(uri.removeprefix("s3://").split("/")[0])
    return pyarrow.fs.S3FileSystem(region=region or "us-east-1", endpoint_override=endpoint)
