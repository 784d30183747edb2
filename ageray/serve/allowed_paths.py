"""Which inputs and outputs a request may name: those below configured prefixes, whatever it writes."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from ageray.serve.errors import ApiError

_URL = re.compile(r"[a-z][a-z0-9+.-]*://")
_STRANGE = re.compile(r"[\x00-\x1f\x7f\\?#%*\[\]]|::")


def below(uri: str, prefixes: Sequence[str], key: str, itself: bool = False) -> str:
    """`uri` made absolute, links followed. Raises ApiError (403, or 400 for what is no path) unless it lies below one of `prefixes`.

    key: what the request calls it. itself: a prefix itself will do.
    """
    if not uri or _STRANGE.search(uri) or len(uri) > 1024 or uri.endswith((".yaml", ".yml")):
        raise ApiError(400, "malformed", f"{key}: give a plain absolute path or url")
    found = _url(uri, prefixes, itself) if "://" in uri else _path(uri, prefixes, itself)
    if found is None:
        raise ApiError(403, "forbidden", f"{key}: must lie below one of {', '.join(prefixes)}")
    return found


def _url(uri: str, prefixes: Sequence[str], itself: bool) -> str | None:
    match = _URL.match(uri)
    parts = uri[match.end() :].rstrip("/").split("/") if match else [""]
    if any(part in ("", ".", "..") for part in parts):
        return None
    clean = match.group() + "/".join(parts) if match else ""
    allowed = any(
        "://" in prefix and (clean + "/" * itself).startswith(prefix.rstrip("/") + "/") for prefix in prefixes
    )
    return clean if allowed else None


def _path(uri: str, prefixes: Sequence[str], itself: bool) -> str | None:
    path = Path(uri)
    if not path.is_absolute() or ".." in path.parts:
        return None
    real = path.resolve()
    for prefix in prefixes:
        if "://" not in prefix:
            root = Path(prefix).expanduser().resolve()
            if (itself or real != root) and real.is_relative_to(root):
                return str(real)
    return None


def first_escaping_link(folder: str, prefixes: Sequence[str]) -> str | None:
    """The first link within a local folder that leads out of every prefix; what follows it would be read too."""
    if "://" in folder or not Path(folder).is_dir():
        return None
    for where, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(where, name)  # noqa: PTH118  # a million of them: Path would take seconds
            if os.path.islink(path) and _path(os.path.realpath(path), prefixes, True) is None:  # noqa: PTH114
                return path
    return None
