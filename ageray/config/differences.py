"""Which settings differ between two runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Dotted keys to the scalars of plain mappings and lists; an empty one counts as a scalar."""
    children = dict(enumerate(value)) if isinstance(value, list) else value
    if not isinstance(children, dict) or not children:
        return {name: value}
    leaves: dict[str, Any] = {}
    for key, child in children.items():
        leaves |= flat(child, f"{name}.{key}".removeprefix("."))
    return leaves


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`key: old value, now new value` for each dotted key whose value differs.

    A missing key counts as null, and an empty mapping or list as missing.
    """
    old, new = _scalars(before), _scalars(now)
    lines = []
    for key in dict.fromkeys([*old, *new]):
        if old.get(key) != new.get(key):
            lines.append(f"{key}: {json.dumps(old.get(key))}, now {json.dumps(new.get(key))}")
    return lines


def _scalars(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: leaf for key, leaf in flat(dict(value)).items() if leaf not in ({}, [])}
