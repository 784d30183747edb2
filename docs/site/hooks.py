"""Hooks of MkDocs (`mkdocs.yml`): adds the pages that do not lie in docs/, and mends links.

Links between pages are written for a reader of the repository. A link to a file that is no page of
the site becomes the file's name.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
"""Pages at the root of the repository, and their names in the site."""

API = {
    "api/python.md": (
        "What `import ageray` offers",
        ["ageray.api.model", "ageray.api.answers", "ageray.api.calls", "ageray.api.client"],
    ),
    "api/service.md": ("The service's settings and JSON", ["ageray.serve.settings", "ageray.serve.schemas"]),
    "api/losses.md": (
        "Losses",
        [
            "ageray.losses.cross_entropy",
            "ageray.losses.neighborhood",
            "ageray.losses.triplet",
            "ageray.losses.contrastive",
            "ageray.losses.cluster_scatter",
            "ageray.losses.mean_variance",
            "ageray.losses.criterion",
        ],
    ),
    "api/metrics.md": ("Metrics and calibration", ["ageray.metrics", "ageray.calibration"]),
    "api/inside.md": (
        "Inside",
        ["ageray.predictor", "ageray.bundle", "ageray.schema", "ageray.stages.detect"],
    ),
}
"""Pages of the API: title, and the modules whose docstrings they show."""

_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)]*)?\)")


def on_config(config: Any) -> Any:
    """Lists pages of docs/ that `nav` forgets under More, so that a new page is never left out."""
    rest = unlisted(config["nav"])
    if rest:
        config["nav"].append({"More": rest})
    return config


def unlisted(nav: list[dict[str, Any]]) -> list[str]:
    """Names of the pages in docs/ that the navigation does not have."""
    pages: list[str] = []
    for section in nav:
        for content in section.values():
            pages += [content] if isinstance(content, str) else content
    return sorted(page.name for page in ROOT.glob("docs/*.md") if page.name not in pages)


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages of the repository's root and those of the API."""
    from mkdocs.structure.files import File

    for source, page in PAGES.items():
        text = mend(ROOT.joinpath(source).read_text(), "")
        files.append(File.generated(config, page, content=text))
    for page, (title, modules) in API.items():
        text = "\n".join([f"# {title}", "", *(f"::: {module}\n" for module in modules)])
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Mends the links of a page of docs/."""
    if page.file.src_uri in PAGES.values() or page.file.src_uri in API:
        return markdown
    return mend(markdown, "docs")


def mend(markdown: str, folder: str) -> str:
    """The text of a page that lies in `folder` of the repository, with the links of the site."""

    def replace(match: re.Match[str]) -> str:
        picture, text, target, anchor = match.groups()
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        if path in PAGES:
            return f"{picture}[{text}]({PAGES[path]}{anchor or ''})"
        if path.startswith("docs/"):
            return f"{picture}[{text}]({path.removeprefix('docs/')}{anchor or ''})"
        return text if path in text else f"{text} (`{path}`)"

    return _LINK.sub(replace, markdown)
