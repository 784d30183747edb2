"""Reads and writes bytes at local paths and at any fsspec url (`s3://`, `memory://`, ...).

This is the only module that tells them apart. Both go through fsspec, except where a local disk can
do more: a file is replaced atomically, a folder is renamed, Parquet is read by Arrow itself.

S3 takes credentials, region and endpoint from the usual AWS variables (`AWS_ACCESS_KEY_ID`,
`AWS_REGION`, `AWS_ENDPOINT_URL`, ...). What is missing, forbidden or out of reach is a UserError
that names the uri.
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import fsspec
import pyarrow.fs
from fsspec.implementations.local import LocalFileSystem

from ageray.errors import UserError, one_line

MARKER = "_unfinished"
"""A file of this name marks a folder whose files are being replaced; do not read such a folder."""

ENDPOINT = "AWS_ENDPOINT_URL"
"""The variable with the address of the S3 server, which every client of S3 reads."""

READERS = 16
"""Threads of a task that fetch files: an object store takes long to answer, and waiting needs no
CPU.
"""

_S3_PAGE = 1000  # keys of an answer, at most
_READ_AHEAD = 8 * 2**20  # bytes of one fetch of a file that is read from front to back
_LOCAL = LocalFileSystem()


def use_endpoint(url: str | None) -> None:
    """Makes `s3://` mean the server at `url`, in this process and its children. None changes
    nothing.

    Raises UserError if `url` is not the address of a server.
    """
    if url is None:
        return
    if not url.startswith(("http://", "https://")):
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
    return str(_local(uri).resolve())


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
    with _explained(uri):
        if uri.startswith("s3://"):
            return _s3(uri), uri.removeprefix("s3://").rstrip("/")
        fs, path = _fsspec(uri)
        return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs)), path


def exists(uri: str) -> bool:
    """Whether there is a file or a folder (on an object store: any key that starts with `uri`)."""
    with _explained(uri):
        fs, path = _fsspec(uri)
        return bool(fs.exists(path))


def is_folder(uri: str) -> bool:
    """Whether `uri` is a folder (on an object store: whether any key starts with `uri` and a
    slash).
    """
    with _explained(uri):
        fs, path = _fsspec(uri)
        if uri.startswith("s3://"):  # s3fs lists the whole folder to find out
            with suppress(FileNotFoundError):  # no such bucket
                return bool(_s3_page(fs, path, 1).get("Contents"))
            return False
        return bool(fs.isdir(path))


def list_files(uri: str, suffixes: tuple[str, ...] = ()) -> list[str]:
    """All files below a folder, sorted, whose names end in one of `suffixes` (in any case) or,
    without suffixes, all.

    Leaves out files and folders whose name starts with a dot. Raises UserError if there is no such
    folder.
    """
    root = uri.rstrip("/") or "/"
    if not is_folder(root):
        raise UserError(f"{uri}: there is no such folder; check the path or url")
    endings = tuple(map(str.lower, suffixes)) or ("",)
    files = []
    with _explained(uri):
        for name in _names(root):
            if name.lower().endswith(endings) and not name.startswith(".") and "/." not in name:
                files.append(join(root, name))
    return sorted(files)


def walk(uri: str) -> Iterator[str]:
    """The path of every file below a folder, relative to it, in the order of `sorted`.

    Files are listed once, a folder (on S3: 1000 keys) at a time, so that memory does not grow with
    their number. Leaves out files and folders whose name starts with a dot. Raises UserError if
    there is no such folder (on S3 it has no files then).
    """
    root = uri.rstrip("/") or "/"
    with _explained(uri):
        fs, path = _fsspec(root)
        if not is_remote(root):
            yield from _walk_local(_local(root), "")
            return
        is_s3 = uri.startswith("s3://")
        for name in _walk_s3(uri, fs, path) if is_s3 else sorted(_names(root)):
            if not name.startswith(".") and "/." not in name:
                yield name


def read_bytes(uri: str, limit: int | None = None) -> bytes:
    """The content of a file, or its first `limit` bytes."""
    with _explained(uri):
        fs, path = _fsspec(uri)
        if limit is None:
            return bytes(fs.cat_file(path))
        with fs.open(path, "rb", cache_type="none") as file:
            return bytes(file.read(limit))


def read_part(uri: str, start: int, count: int) -> bytes:
    """`count` bytes of a file from `start` on; fewer at its end."""
    with _explained(uri):
        fs, path = _fsspec(uri)
        end = min(start + count, fs.size(path))
        if end <= start:
            return b""
        return bytes(fs.cat_file(path, start=start, end=end))


def size(uri: str) -> int:
    """Bytes of a file."""
    with _explained(uri):
        fs, path = _fsspec(uri)
        return int(fs.size(path))


@contextmanager
def reading(uri: str) -> Iterator[IO[bytes]]:
    """A file open for reading from front to back; it may be far larger than memory.

    Errors while it is open become UserErrors too.
    """
    with _explained(uri):
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
    with _explained(uri):
        if is_remote(uri):
            fs, path = _fsspec(uri)
            fs.pipe_file(path, data)
            return
        target = _local(uri)
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
        try:
            with draft.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(target)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise


def write_text(uri: str, text: str) -> None:
    """Writes a whole UTF-8 file or nothing."""
    write_bytes(uri, text.encode())


def make_folder(uri: str) -> None:
    """Makes a folder and the folders above it. An object store needs none."""
    if not is_remote(uri):
        with _explained(uri):
            _local(uri).mkdir(parents=True, exist_ok=True)


def copy(src: str, dst: str) -> None:
    """Copies a file within one store, which does it by itself. A local file gets a second name, or
    is copied where that is not possible.
    """
    with _explained(src):
        if is_remote(src):
            fs, origin = _fsspec(src)
            fs.cp_file(origin, _fsspec(dst)[1])
            return
        try:
            os.link(_local(src), _local(dst))
        except OSError:
            shutil.copyfile(_local(src), _local(dst))


def copy_tree(src: str, dst: str) -> None:
    """Copies every file below `src` to the same path below `dst`; the two may be on different
    stores.
    """
    for file in list_files(src):
        write_bytes(join(dst, file[len(src.rstrip("/")) + 1 :]), read_bytes(file))


def remove_tree(uri: str) -> None:
    """Removes a folder with everything below it. Does nothing if there is none."""
    with _explained(uri), suppress(FileNotFoundError):
        fs, path = _fsspec(uri)
        if fs.exists(path):
            fs.rm(path, recursive=True)


def replace_folder(src: str, dst: str, last: str) -> None:
    """Replaces the folder `dst` by the finished folder `src` of the same store.

    A local folder is renamed. On an object store, and if `dst` is a mounted volume, the files are
    copied one by one, the one named `last` at the end. Until then `dst` has a file `_unfinished`,
    so that nobody reads a part of it.
    """
    with _explained(dst):
        try:
            if not is_remote(dst):
                _swap(_local(src), _local(dst))
                return
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EBUSY):
                raise
    _refill(src, dst, last)


def _swap(src: Path, dst: Path) -> None:
    dst.parent.mkdir(parents=True, exist_ok=True)
    old = dst.with_name(f".{dst.name}.{uuid.uuid4().hex[:8]}")
    if dst.exists():
        dst.rename(old)
    src.rename(dst)
    shutil.rmtree(old, ignore_errors=True)


def _refill(src: str, dst: str, last: str) -> None:
    write_text(join(dst, MARKER), "Being written; if nothing is writing here, run the command again.\n")
    with _explained(dst):
        fs, target = _fsspec(dst)
        _, origin = _fsspec(src)
        for path in fs.find(target):
            if not path.endswith("/" + MARKER):
                fs.rm_file(path)
        files = {path.removeprefix(origin) for path in fs.find(origin)}
        files -= {"", "/"}  # some writers leave an empty object with the name of the folder

        def copy_one(name: str) -> None:
            fs.cp_file(origin + name, target + name)

        with ThreadPoolExecutor(READERS) as pool:
            list(pool.map(copy_one, sorted(files - {f"/{last}"})))
        copy_one(f"/{last}")
        fs.rm_file(f"{target}/{MARKER}")
    remove_tree(src)


def _local(uri: str) -> Path:
    return Path(uri.removeprefix("file://").removeprefix("local://")).expanduser()


def _names(root: str) -> Iterator[str]:
    """Every file below a folder, as a path relative to it."""
    if is_remote(root):
        fs, path = _fsspec(root)
        for file in fs.find(path):
            yield file[len(path) :].lstrip("/")
        return

    # fsspec's own walk takes 4 times as long, skips folders that it may not enter, and lists links
    # to folders as files
    def fail(error: OSError) -> None:
        raise error

    for folder, _, files in os.walk(_local(root), onerror=fail):
        inner = Path(folder).relative_to(_local(root)).as_posix() + "/"
        for name in files:
            yield (inner + name).removeprefix("./")


def _walk_local(root: Path, inner: str) -> Iterator[str]:
    """Files below the folder `inner` of `root`; links to folders are left out."""
    entries = []
    with os.scandir(root / inner) as folder:
        for entry in folder:
            is_folder = entry.is_dir()
            if not entry.name.startswith(".") and not (is_folder and entry.is_symlink()):
                entries.append(inner + entry.name + "/" * is_folder)
    for name in sorted(entries):
        if name.endswith("/"):
            yield from _walk_local(root, name)
        else:
            yield name


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
    options = {"use_listings_cache": False} if uri.startswith("s3") else {}
    fs, path = fsspec.core.url_to_fs(uri, **options)
    fs.invalidate_cache()
    return fs, path.rstrip("/")


def _s3(uri: str) -> pyarrow.fs.FileSystem:
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get(ENDPOINT)
    if not region and not endpoint:
        region = pyarrow.fs.resolve_s3_region(uri.removeprefix("s3://").split("/")[0])
    return pyarrow.fs.S3FileSystem(region=region or "us-east-1", endpoint_override=endpoint)


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Turns an error of a store into a UserError that names the uri and the remedy."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        text = _explain(error)
        if text is None:
            raise
        raise UserError(f"{uri}: {text}") from None


def _explain(error: Exception) -> str | None:
    """What is wrong and what to do; None if the error is not a store's."""
    match error:
        case FileNotFoundError():
            return "not found; check the path or url"
        case PermissionError():
            return f"access denied; check the permissions or the store's credentials ({one_line(error)})"
        case IsADirectoryError() | NotADirectoryError() | FileExistsError():
            return f"{error.strerror or 'wrong kind of path'}; check whether a file or a folder is meant"
        case ImportError():
            return f"this kind of url needs another package ({one_line(error)})"
        case ValueError():
            return f"not a path or url that can be used ({one_line(error)})"
    # the clients of the stores have exceptions of their own
    if isinstance(error, OSError) or type(error).__module__.partition(".")[0] in ("botocore", "aiohttp"):
        return f"cannot be reached or used; check the url, credentials and network ({one_line(error)})"
    return None
