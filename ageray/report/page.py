"""What every page is made with: its template, and a model's card as rows. Whatever comes from outside is escaped by the templates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2

PAGE = "report.html"

_TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **values: Any) -> str:
    """The page of a template in `ageray/report/templates`; text is escaped, Markup is not."""
    loader = jinja2.FileSystemLoader(_TEMPLATES)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(values)


def describe_model(card: dict[str, Any]) -> dict[str, Any]:
    """A bundle's card for `parts.model`: `limits` (what it is not good for) and `rows` of name and text."""
    limits = card.get("not_good_for") or []
    rest = {key: value for key, value in card.items() if key != "not_good_for"}
    return {"limits": [limits] if isinstance(limits, str) else limits, "rows": list(flat(rest))}


def flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Name and text of each value of nested dicts; empty ones and tables are left out."""
    for key, value in values.items():
        name = f"{prefix}{key.replace('_', ' ')}"
        if isinstance(value, dict):
            yield from flat(value, f"{name}: ")
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            continue  # tables, such as errors by decade
        elif value not in (None, "", []):
            yield name, ", ".join(map(_text, value)) if isinstance(value, list) else _text(value)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
