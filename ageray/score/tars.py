"""Photos in tar archives (WebDataset shards), read from front to back, as an object store gives them best."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import NamedTuple

from ageray import storage
from ageray.errors import UserError
from ageray.faces.images import MOST_BYTES, PHOTOS

_END_MARK = 1024
"""An archive ends in at least so many zero bytes; one that was cut short, while it was written or copied, does not."""


class Member(NamedTuple):
    """A photo in an archive: its path there, its bytes or why there are none, and where in the archive it ends."""

    name: str
    content: bytes | UserError
    end: int


def check(uri: str) -> int:
    """The archive's size in bytes. Raises UserError if it is none, or cut short."""
    size = storage.size(uri)
    head, tail = (storage.read_part(uri, start, _END_MARK) for start in (0, max(0, size - _END_MARK)))
    try:
        if any(head):
            tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], tarfile.ENCODING, "surrogateescape")
    except tarfile.HeaderError:
        raise UserError(
            f"{uri}: not a tar archive (or a compressed one); give an uncompressed .tar"
        ) from None
    if len(tail) < _END_MARK or any(tail):
        raise UserError(f"{uri}: cut short: the archive has no end mark; copy or write it again")
    return size


def photos(uri: str) -> Iterator[Member]:
    """The photos of an archive in their order. If it breaks off, the last one has no name and says so."""
    end = count = 0
    try:
        with (
            storage.reading(uri) as file,
            tarfile.open(fileobj=file, mode="r|", errors="surrogateescape") as archive,
        ):
            for info in archive:
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                if not _is_photo(info):
                    continue
                end, count = info.offset_data + info.size, count + 1
                yield Member(_text(info.name), _content(archive, info), end)
            stopped = archive.offset
        # At a header that is none, tarfile stops without a word, as at the end mark.
        if any(storage.read_part(uri, stopped, tarfile.BLOCKSIZE)):
            raise tarfile.ReadError("bad header")
    except tarfile.TarError as error:
        yield Member(
            "",
            UserError(f"the archive breaks off after {count} photos ({' '.join(str(error).split())})"),
            end,
        )


def read(uri: str, names: set[str]) -> Iterator[tuple[str, bytes]]:
    """Names and contents of some of an archive's photos; nothing of those that cannot be read."""
    left = set(names)
    for member in photos(uri):
        if member.name in left and isinstance(member.content, bytes):
            yield member.name, member.content
        left.discard(member.name)
        if not left:
            return


def _is_photo(info: tarfile.TarInfo) -> bool:
    name = info.name.rsplit("/", 1)[-1]
    return info.isreg() and name.lower().endswith(PHOTOS) and not name.startswith(".")


def _content(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes | UserError:
    if info.size > MOST_BYTES:
        return UserError(f"over {MOST_BYTES >> 20} MiB")
    file = archive.extractfile(info)
    assert file is not None  # a regular file
    return file.read()


def _text(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
