"""Checks the paths of a request: an input or output must lie below a configured prefix."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from ageray.serve.errors import ApiError

_URL = re.compile(r"[a-z][a-z0-9+.-]*://")
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f\\?#%*\[\]]|::")


def resolve_allowed(uri: str, prefixes: Sequence[str], key: str, itself: bool = False) -> str:
    """`uri` as an absolute path with links followed, or as a url without a trailing slash.

    key: the name of the field in the request. itself: whether a prefix itself is allowed.
    Raises ApiError: 400 for a malformed path, 403 if it does not lie below one of `prefixes`.
    """
    if not uri or _FORBIDDEN.search(uri) or len(uri) > 1024 or uri.endswith((".yaml", ".yml")):
        raise ApiError(400, "malformed", f"{key}: give a plain absolute path or url")
    resolve = _allowed_url if "://" in uri else _allowed_path
    resolved = resolve(uri, prefixes, itself)
    if resolved is None:
        raise ApiError(403, "forbidden", f"{key}: must lie below one of {', '.join(prefixes)}")
    return resolved


def _allowed_url(uri: str, prefixes: Sequence[str], itself: bool) -> str | None:
    match = _URL.match(uri)
    if match is None:
        return None
    parts = uri[match.end() :].rstrip("/").split("/")
    if any(part in ("", ".", "..") for part in parts):
        return None
    url = match.group() + "/".join(parts)
    for prefix in prefixes:
        folder = prefix.rstrip("/") + "/"
        if "://" in prefix and (url.startswith(folder) or (itself and url + "/" == folder)):
            return url
    return None


def _allowed_path(uri: str, prefixes: Sequence[str], itself: bool) -> str | None:
    path = Path(uri)
    if not path.is_absolute() or ".." in path.parts:
        return None
    path = path.resolve()
    for prefix in prefixes:
        if "://" not in prefix:
            root = Path(prefix).expanduser().resolve()
            if (itself or path != root) and path.is_relative_to(root):
                return str(path)
    return None


def first_escaping_link(folder: str, prefixes: Sequence[str]) -> str | None:
    """The first link below a local folder whose target lies outside every prefix; None if there
    is none.

    The scoring job would follow such a link.
    """
    if "://" in folder or not Path(folder).is_dir():
        return None
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(parent, name)  # noqa: PTH118  # Path costs seconds for a million files
            if os.path.islink(path) and _allowed_path(os.path.realpath(path), prefixes, True) is None:  # noqa: PTH114
                return path
    return None
