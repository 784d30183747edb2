"""Pages for people that the service makes itself: its routes, and the model's card. They load
nothing, not even from the service."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from ageray import report

POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy of these pages and of reports."""

_TEMPLATES = Path(__file__).parent / "templates"
_EXAMPLES = {
    "/v1/score": "curl -F images=@photo.jpg http://HOST:8000/v1/score",
    "/v1/batches": "curl -H 'Content-Type: application/json' "
    '-d \'{"input": "/data/photos", "out": "/data/scores"}\' http://HOST:8000/v1/batches',
}


def docs_page(openapi: dict[str, Any], keys: bool) -> str:
    """The routes of the service with the fields of their bodies and answers.

    openapi: the description that programs get. keys: whether requests need a key.
    """
    routes = []
    for path, methods in openapi["paths"].items():
        for method, route in methods.items():
            routes.append(_route(method.upper(), path, route, openapi["components"]["schemas"]))
    return report.render(
        "docs.html",
        _TEMPLATES,
        title="ageray over HTTP",
        summary=openapi["info"]["summary"],
        routes=routes,
        keys=keys,
    )


def _route(method: str, path: str, route: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    parameters = []
    for each in route.get("parameters", []):
        parameters.append((each["name"], _prose(each.get("description", each["in"]))))
    content = route.get("requestBody", {}).get("content", {})
    answers = [answer for status, answer in route["responses"].items() if status in ("200", "202")]
    answer = answers[0].get("content", {}).get("application/json", {}).get("schema", {}) if answers else {}
    return {
        "method": method,
        "path": path,
        "name": f"{method}{path}".replace("/", "-").replace("{", "").replace("}", ""),
        "what": _prose(route.get("description", route.get("summary", ""))),
        "example": _EXAMPLES.get(path, "") if method == "POST" else "",
        "parameters": parameters,
        "body": _fields(content.get("application/json", {}).get("schema", {}), schemas),
        "answer": _fields(answer, schemas),
    }


def _fields(schema: dict[str, Any], schemas: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Dotted names and descriptions of the fields of a JSON schema; lists are marked with []."""
    rows = []
    for name, field in _resolve(schema, schemas).get("properties", {}).items():
        item, mark = field, ""
        if field.get("type") == "array":
            item, mark = field.get("items", {}), "[]"
        rows.append((f"{prefix}{name}{mark}", _prose(str(field.get("description", "")))))
        rows += _fields(item, schemas, f"{prefix}{name}{mark}.")
    return rows


def _prose(text: str) -> str:
    """A docstring's words as HTML: what stands between backticks is code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(" ".join(text.split())))))


def _resolve(schema: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    """The schema that a reference names, also where it may be null."""
    for each in (schema, *schema.get("anyOf", [])):
        if "$ref" in each:
            target: dict[str, Any] = schemas[each["$ref"].rpartition("/")[2]]
            return target
    return schema
