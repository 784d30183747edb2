"""The frame of every page: renders a template; lists a model's card as rows.

Templates escape all text, so that names and notes of the data cannot become HTML.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2

PAGE = "report.html"

_KIT = Path(__file__).parent / "templates"


def render(template: str, folder: Path = _KIT, **values: Any) -> str:
    """The HTML of a template with `values`; text is escaped, Markup is not.

    folder: where the page's own template lies; by default in the kit, `ageray/report/templates`.
    A template may use the kit's `page.html` and `parts.html` from any folder.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, _KIT]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(values)


def describe_model(card: dict[str, Any]) -> dict[str, Any]:
    """A bundle's card for `parts.model`: `limits` (what it is not good for), `rows` (name,
    text)."""
    limits = card.get("not_good_for") or []
    if isinstance(limits, str):
        limits = [limits]
    rest = {key: value for key, value in card.items() if key != "not_good_for"}
    return {"limits": limits, "rows": list(flat(rest))}


def flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Name and text of each value of nested dicts, without empty values and tables."""
    for key, value in values.items():
        name = f"{prefix}{key.replace('_', ' ')}"
        if isinstance(value, dict):
            yield from flat(value, f"{name}: ")
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            continue  # a table, such as errors by decade
        elif value not in (None, "", []):
            yield name, _text(value)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)
