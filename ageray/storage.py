"""Where bytes live: local paths and any fsspec url (`s3://`, `memory://`, ...); the only module that knows the
difference.

S3 takes credentials, region and endpoint from the usual AWS variables (`AWS_ACCESS_KEY_ID`, `AWS_REGION`,
`AWS_ENDPOINT_URL`, ...). Whatever is missing, forbidden or out of reach is a UserError that names the uri.
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import fsspec
import pyarrow.fs

from ageray.errors import UserError

MARKER = "_unfinished"
"""A file of this name marks a folder whose files are being replaced; do not read such a folder."""

ENDPOINT = "AWS_ENDPOINT_URL"
"""The variable from which every client of S3 takes the server's address."""

_AHEAD = 8 * 2**20  # bytes that a file read from front to back is fetched by


def use_endpoint(url: str | None) -> None:
    """Makes `s3://` mean the server at `url`, here and in processes started from here; None leaves it as it is.

    Raises UserError if that is no address of a server.
    """
    if url is None:
        return
    if not url.startswith(("http://", "https://")):
        raise UserError(
            f"storage.endpoint_url={url}: no address of a server; write http://HOST:PORT or https://HOST"
        )
    os.environ[ENDPOINT] = url


def is_remote(uri: str) -> bool:
    """Whether `uri` is on another store than this machine's file system."""
    return "://" in uri and not uri.startswith(("file://", "local://"))


def absolute(uri: str) -> str:
    """`uri` as processes in other folders can use it: a whole path, links followed; a remote url stays as it is."""
    return uri if is_remote(uri) else str(_local(uri).resolve())


def join(uri: str, *parts: str) -> str:
    """`uri` extended by path parts; an absolute path or a url among them starts anew."""
    for part in parts:
        whole = "://" in part or part.startswith("/")
        base = uri if uri.endswith("/") else uri + "/"
        uri = part if whole else base + part
    return uri


def unfinished(uri: str) -> str:
    """The folder beside `uri` in which `uri` is written. It takes the place of `uri` when complete."""
    return uri.rstrip("/") + ".unfinished"


def half_written(uri: str) -> bool:
    """Whether `replace_folder` was interrupted, or is still running, in the folder `uri`."""
    return exists(join(uri, MARKER))


def filesystem(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """Arrow's file system for Parquet, and the path within it; for S3 Arrow's own, which reads much faster than
    s3fs."""
    if not is_remote(uri):
        return pyarrow.fs.LocalFileSystem(), absolute(uri)
    with _explained(uri):
        if uri.startswith("s3://"):
            return _s3(uri), uri.removeprefix("s3://").rstrip("/")
        fs, path = _fsspec(uri)
        return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs)), path


def exists(uri: str) -> bool:
    """Whether there is a file or a non-empty folder."""
    if not is_remote(uri):
        return _local(uri).exists()
    with _explained(uri):
        fs, path = _fsspec(uri)
        return bool(fs.exists(path))


def is_folder(uri: str) -> bool:
    """Whether `uri` is a folder (on an object store: whether any key starts with it)."""
    if not is_remote(uri):
        return _local(uri).is_dir()
    with _explained(uri):
        fs, path = _fsspec(uri)
        return bool(fs.isdir(path))


def list_files(uri: str, suffixes: tuple[str, ...] = ()) -> list[str]:
    """All files below a folder whose names end in one of `suffixes` (any case; none given: all), as sorted uris.

    Files and folders whose name starts with a dot are left out. Raises UserError if there is no such folder.
    """
    root = uri.rstrip("/") or "/"
    if not is_folder(root):
        raise UserError(f"{uri}: there is no such folder; check the path or url")
    with _explained(uri):
        names = list(_names(root))
    endings = tuple(suffix.lower() for suffix in suffixes)
    kept = (name for name in names if not endings or name.lower().endswith(endings))
    return sorted(
        join(root, name) for name in kept if not any(part.startswith(".") for part in name.split("/"))
    )


def read_bytes(uri: str, limit: int | None = None) -> bytes:
    """The content of a file, or its first `limit` bytes."""
    with _explained(uri):
        if not is_remote(uri):
            with _local(uri).open("rb") as file:
                return file.read(-1 if limit is None else limit)
        fs, path = _fsspec(uri)
        if limit is None:
            return bytes(fs.cat_file(path))
        with fs.open(path, "rb", cache_type="none") as file:
            return bytes(file.read(limit))


def read_part(uri: str, start: int, count: int) -> bytes:
    """`count` bytes of a file from `start` on, fewer where it ends."""
    with _explained(uri):
        if is_remote(uri):
            fs, path = _fsspec(uri)
            end = min(start + count, fs.size(path))
            return bytes(fs.cat_file(path, start=start, end=end)) if end > start else b""
        with _local(uri).open("rb") as file:
            file.seek(start)
            return file.read(count)


def size(uri: str) -> int:
    """Bytes of a file."""
    with _explained(uri):
        if not is_remote(uri):
            return _local(uri).stat().st_size
        fs, path = _fsspec(uri)
        return int(fs.size(path))


@contextmanager
def reading(uri: str) -> Iterator[IO[bytes]]:
    """A file open for reading from front to back, far larger than memory if need be. What goes wrong while it is open
    is told as everywhere here."""
    with _explained(uri):
        if not is_remote(uri):
            with _local(uri).open("rb") as file:
                yield file
            return
        fs, path = _fsspec(uri)
        with fs.open(path, "rb", block_size=_AHEAD, cache_type="readahead") as file:
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
    """Writes a file whole or not at all, with the folders above it."""
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
    """Writes a UTF-8 file whole or not at all."""
    write_bytes(uri, text.encode())


def make_folder(uri: str) -> None:
    """Makes a folder and those above it; an object store needs none."""
    if not is_remote(uri):
        with _explained(uri):
            _local(uri).mkdir(parents=True, exist_ok=True)


def copy_tree(src: str, dst: str) -> None:
    """Copies every file below `src` to the same place below `dst`; the two may be on different stores."""
    for file in list_files(src):
        write_bytes(join(dst, file[len(src.rstrip("/")) + 1 :]), read_bytes(file))


def remove_tree(uri: str) -> None:
    """Removes a folder with all below it; does nothing if it is not there."""
    with _explained(uri):
        if not is_remote(uri):
            with suppress(FileNotFoundError):
                shutil.rmtree(_local(uri))
            return
        fs, path = _fsspec(uri)
        if fs.exists(path):
            fs.rm(path, recursive=True)


def replace_folder(src: str, dst: str, last: str) -> None:
    """Puts the finished folder `src` in the place of `dst` (same store), so that half of it is never read.

    A local folder is renamed. On an object store, and where `dst` is a mounted volume, the files are copied one by
    one, the one named `last` at the end, and until then `dst` holds a file `_unfinished`.
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
        # some writers leave an empty object named like the folder
        files = [path for path in fs.find(origin) if path.rstrip("/") != origin]
        for path in sorted(files, key=lambda path: (path == f"{origin}/{last}", path)):
            fs.cp_file(path, target + path.removeprefix(origin))
        fs.rm_file(f"{target}/{MARKER}")
    remove_tree(src)


def _local(uri: str) -> Path:
    return Path(uri.removeprefix("file://").removeprefix("local://")).expanduser()


def _names(root: str) -> Iterator[str]:
    """Every file below a folder, as paths relative to it."""
    if is_remote(root):
        fs, path = _fsspec(root)
        yield from (found[len(path) :].lstrip("/") for found in fs.find(path))
        return

    def fail(error: OSError) -> None:  # os.walk would pass over a folder that it may not enter
        raise error

    for folder, _, files in os.walk(_local(root), onerror=fail):
        inner = Path(folder).relative_to(_local(root)).as_posix()
        yield from (name if inner == "." else f"{inner}/{name}" for name in files)


def _fsspec(uri: str) -> tuple[Any, str]:
    # A cached listing would hide what other processes write.
    fs, path = fsspec.core.url_to_fs(uri, **({"use_listings_cache": False} if uri.startswith("s3") else {}))
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
    """Turns what the stores raise into a UserError that names the uri and the remedy."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        trouble = _trouble(error)
        if trouble is None:
            raise
        raise UserError(f"{uri}: {trouble}") from None


def _trouble(error: Exception) -> str | None:
    """What went wrong and what to do, or None where the error is none of a store's."""
    match error:
        case FileNotFoundError():
            return "not found; check the path or url"
        case PermissionError():
            return f"access denied; check the permissions or the store's credentials ({_brief(error)})"
        case IsADirectoryError() | NotADirectoryError() | FileExistsError():
            return f"{error.strerror or 'wrong kind of path'}; check whether a file or a folder is meant"
        case ImportError():
            return f"this kind of url needs another package ({_brief(error)})"
        case ValueError():
            return f"not a path or url that can be used ({_brief(error)})"
    # The stores' clients have families of errors of their own.
    if isinstance(error, OSError) or type(error).__module__.partition(".")[0] in ("botocore", "aiohttp"):
        return f"cannot be reached or used; check the url, credentials and network ({_brief(error)})"
    return None


def _brief(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


READERS = 16
"""Threads of a task that fetch files: on an object store they take long to come and nothing to compute."""
