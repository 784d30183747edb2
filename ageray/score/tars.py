"""Photos in tar archives (WebDataset shards), read from front to back, the way object stores are
fastest.
"""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Iterator
from typing import NamedTuple

from ageray import storage
from ageray.errors import UserError, one_line
from ageray.faces import images
from ageray.faces.images import PHOTOS, ImageError

_END_MARK = 1024
"""A whole archive ends in at least this many zero bytes. One that was cut short while it was copied
does not.
"""


_RECORD = 10240  # bytes that tar writes at once


class Member(NamedTuple):
    """A photo in an archive: its path there, its bytes or why there are none, and the offset of its
    end.
    """

    name: str
    content: bytes | UserError | ImageError
    end: int


def check(uri: str) -> int:
    """The archive's size in bytes. Raises UserError if it is no archive, or cut short."""
    size = storage.size(uri)
    head = storage.read_part(uri, 0, _END_MARK)
    tail = storage.read_part(uri, max(0, size - _END_MARK), _END_MARK)
    try:
        if any(head):
            tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], tarfile.ENCODING, "surrogateescape")
    except tarfile.HeaderError:
        reason = "not a tar archive (or a compressed one)"
        raise UserError(f"{uri}: {reason}; give an uncompressed .tar") from None
    if len(tail) < _END_MARK or any(tail):
        raise UserError(f"{uri}: cut short: the archive has no end mark; copy or write it again")
    return size


def photos(uri: str) -> Iterator[Member]:
    """The photos of an archive in their order. If the archive breaks off, the last member has no
    name and says so.
    """
    end = count = 0
    places: dict[str, tuple[int, int]] = {}
    try:
        with storage.reading(uri) as file:
            start: int | None = 0
            while start is not None:
                file.seek(start)
                with tarfile.open(fileobj=file, mode="r|", errors="surrogateescape") as archive:
                    for info in archive:
                        archive.members.clear()  # type: ignore[attr-defined]  # it would grow with the archive
                        if not _is_photo(info):
                            continue
                        end, count = max(end, start + info.offset_data + info.size), count + 1
                        if info.issparse():
                            end = start + info.offset_data
                        name = _utf8(info.name)
                        if info.isreg():
                            places[name] = (start + info.offset_data, info.size)
                            yield Member(name, _content(archive, info), end)
                        else:
                            yield Member(name, _linked(uri, info, places), end)
                    start = _next_archive(uri, start + archive.offset)
    except tarfile.TarError as error:
        problem = f"the archive breaks off after {count} photos ({one_line(error)})"
        yield Member("", UserError(problem), end)


def _next_archive(uri: str, stopped: int) -> int | None:
    """Where the archive goes on behind its end mark, as after `cat a.tar b.tar`; None if it does
    not.

    At a broken header tarfile stops without an error, just as at the end mark: then raises
    ReadError.
    """
    place = stopped
    while block := storage.read_part(uri, place, _RECORD):
        if any(block):
            data = next(number for number, value in enumerate(block) if value)
            start = place + data // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
            if start == stopped:
                raise tarfile.ReadError("bad header")
            return start
        place += len(block)
    return None


def _linked(
    uri: str, info: tarfile.TarInfo, places: dict[str, tuple[int, int]]
) -> bytes | UserError | ImageError:
    """The photo that a link leads to. places: where the photos before it are, and their sizes."""
    target = info.linkname
    if info.issym():
        target = posixpath.normpath(posixpath.join(posixpath.dirname(info.name), target))
    if _utf8(target) not in places:
        return UserError(f"a link to {_utf8(target)}, which is no photo before it in the archive")
    start, size = places[_utf8(target)]
    if size > images.MAX_FILE_BYTES:
        return images.too_large()
    return storage.read_part(uri, start, size)


def pick(uri: str, names: set[str]) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of some photos of an archive. Those that cannot be read are left out."""
    missing = set(names)
    for member in photos(uri):
        if member.name in missing and isinstance(member.content, bytes):
            yield member.name, member.content
        missing.discard(member.name)
        if not missing:
            return


def _is_photo(info: tarfile.TarInfo) -> bool:
    name = info.name.rsplit("/", 1)[-1]
    return (
        (info.isreg() or info.islnk() or info.issym())
        and name.lower().endswith(PHOTOS)
        and not name.startswith(".")
    )


def _content(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes | ImageError:
    if info.size > images.MAX_FILE_BYTES:
        return images.too_large()
    file = archive.extractfile(info)
    assert file is not None  # a regular file
    return file.read()


def _utf8(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
