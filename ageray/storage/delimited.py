"""What programs call CSV: the encoding and the delimiter of a table in a text file, and the column
of photos.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

_DELIMITERS = ("\t", ";")
_USUAL = ("path", "file", "filename", "filepath", "url", "img", "photo", "picture", "images")
_PARTS = ("image", "photo", "path", "file", "url", "uri")


def encoding(data: bytes) -> str:
    """Python's name of the encoding of a text that begins with these bytes.

    UTF-8, UTF-16 with its mark (the "Unicode text" of Excel), or else Windows-1252, which has the
    letters of Latin-1.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError:
        return "cp1252"
    return "utf-8-sig" if data.startswith(codecs.BOM_UTF8) else "utf-8"


def delimiter(header: str) -> str:
    """What stands between the columns of a header line: a tab, a semicolon or a comma."""
    return max((",", *_DELIMITERS), key=header.count)


def likely_column(names: Sequence[str]) -> str | None:
    """The column that seems to name photos; None if none does."""
    for usual in _USUAL:
        for name in names:
            if name.strip().lower() == usual:
                return name
    for name in names:
        if any(part in name.lower() for part in _PARTS):
            return name
    return None
