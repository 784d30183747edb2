"""What a uri means: local paths, and any fsspec url (`s3://`, `memory://`, ...).

S3 takes credentials, region and endpoint from the usual AWS variables (`AWS_ACCESS_KEY_ID`,
`AWS_REGION`, `AWS_ENDPOINT_URL`, ...).
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import fsspec
import fsspec.asyn
import pyarrow.fs
from fsspec.implementations.local import LocalFileSystem

from ageray.errors import UserError
from ageray.storage.errors import explained, is_passing

if TYPE_CHECKING:
    import asyncio

ENDPOINT = "AWS_ENDPOINT_URL"
"""The variable with the address of the S3 server, which every client of S3 reads."""

WEB = ("http://", "https://")

_LOCAL = LocalFileSystem()
_CONNECT, _SILENCE, _LONGEST = 15, 60, 600  # seconds until a web server accepts, goes on, ends
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
    if not url.startswith(WEB):
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
    path = local_path(uri)
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


def local_path(uri: str) -> Path:
    """The path of a file or folder of this machine."""
    path = uri.removeprefix("local://")
    if path.startswith("file://"):
        path = path.removeprefix("file://").removeprefix("localhost")
        if "%" in path and not Path(path).exists():
            path = unquote(path)
    return Path(path).expanduser()


def fsspec_store(uri: str) -> tuple[Any, str]:
    """The file system of fsspec, and the path within it."""
    if not is_remote(uri):
        return _LOCAL, str(local_path(uri))
    # a cached listing would hide what other processes write
    options: dict[str, Any] = {}
    if uri.startswith("s3"):
        options = {"use_listings_cache": False}
    elif uri.startswith(WEB):
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
    if isinstance(fs, fsspec.asyn.AsyncFileSystem):
        # set each time: a child of a fork has a loop of its own
        fsspec.asyn.get_loop().set_exception_handler(_told_once)
    return fs, path.rstrip("/")


def _told_once(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Says nothing of a broken connection that no caller waits for: the read that lost it says so.

    aiohttp leaves such tasks behind, and asyncio would print a traceback of each.
    """
    error = context.get("exception")
    if error is None or not is_passing(error):
        loop.default_exception_handler(context)


def filesystem(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """Arrow's file system for Parquet, and the path within it.

    For S3 it is Arrow's own, which reads much faster than s3fs.
    """
    if not is_remote(uri):
        return pyarrow.fs.LocalFileSystem(), absolute(uri)
    with explained(uri):
        if uri.startswith("s3://"):
            return _s3(uri), uri.removeprefix("s3://").rstrip("/")
        fs, path = fsspec_store(uri)
        return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs)), path


def _s3(uri: str) -> pyarrow.fs.FileSystem:
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get(ENDPOINT)
    if not region and not endpoint:
        region = pyarrow.fs.resolve_s3_region(uri.removeprefix("s3://").split("/")[0])
    return pyarrow.fs.S3FileSystem(region=region or "us-east-1", endpoint_override=endpoint)
