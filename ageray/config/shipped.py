"""Settings files that ship with the package, by name: `recipe:baseline`, `data:utkface`,
`scale:laptop`, `tune:loss`, `table:dhaa_table1`.

Their source is the folder `configs` of the repository. A wheel has a copy of it inside the package,
and in a checkout the folder itself is read.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path

KINDS = {"recipe": ".", "data": "data", "scale": "scale", "tune": "tune", "table": "tables"}
"""Each kind of name, with its folder."""

_NAME = re.compile(rf"({'|'.join(KINDS)}):(?!//)(.*)")
_NO_EXPERIMENTS = ("serve",)  # files beside the recipes that hold other settings
_PACKAGE = Path(__file__).resolve().parents[1]


def folder() -> Path:
    """The folder with the settings files: of the package in a wheel, of the repository in a
    checkout."""
    own = _PACKAGE / "configs"
    return own if own.is_dir() else _PACKAGE.parent / "configs"


def is_name(word: str) -> bool:
    """Whether a word has the form of a name. There may be no file of that name."""
    return _NAME.fullmatch(word) is not None


def names() -> list[str]:
    """All names, recipes first."""
    words = []
    for kind, place in KINDS.items():
        for file in sorted((folder() / place).glob("*.yaml")):
            if file.stem not in _NO_EXPERIMENTS:
                words.append(f"{kind}:{file.stem}")
    return words


def path_of(word: str) -> str:
    """The file of a name; any other word is a path already.

    Raises FileNotFoundError, with the nearest name as its text, if no file has the name.
    """
    match = _NAME.fullmatch(word)
    if match is None:
        return word
    kind, stem = match.groups()
    if word in names():
        return str(folder() / KINDS[kind] / f"{stem}.yaml")
    stems = [name.removeprefix(f"{kind}:") for name in names() if name.startswith(f"{kind}:")]
    nearest = difflib.get_close_matches(stem, stems, 1)
    if nearest:
        raise FileNotFoundError(f"did you mean {kind}:{nearest[0]}?")
    raise FileNotFoundError(f"there are {', '.join(f'{kind}:{each}' for each in stems)}")
