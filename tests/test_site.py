"""The site of the documentation: every page is in its list, links are mended, modules are there.
`make docs` builds it, and fails at any warning."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "site" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_is_in_the_list(hooks: ModuleType) -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    pages: list[str] = []
    for section in nav:
        for content in section.values():
            pages += [content] if isinstance(content, str) else content
    pages += hooks.unlisted(nav)
    written = [page.name for page in (ROOT / "docs").glob("*.md")]
    assert sorted(pages) == sorted([*written, *hooks.PAGES.values(), *hooks.API])
    nav[1]["Use"].remove("serve.md")
    assert "serve.md" in hooks.unlisted(nav)


def test_every_module_of_the_api_is_there(hooks: ModuleType) -> None:
    for _, modules in hooks.API.values():
        for module in modules:
            assert importlib.util.find_spec(module) is not None, module


@pytest.mark.parametrize(
    ("text", "folder", "mended"),
    [
        ("see [it](train.md#speed)", "docs", "see [it](train.md#speed)"),
        ("see [it](docs/train.md)", "", "see [it](train.md)"),
        ("![a](docs/images/a.png)", "", "![a](images/a.png)"),
        ("[home](../README.md)", "docs", "[home](index.md)"),
        ("[the schema](../configs/x.json)", "docs", "the schema (`configs/x.json`)"),
        ("[`cluster.yaml`](../cluster.yaml)", "docs", "`cluster.yaml`"),
        ("[ray](https://www.ray.io) [here](#a)", "docs", "[ray](https://www.ray.io) [here](#a)"),
    ],
)
def test_links(hooks: ModuleType, text: str, folder: str, mended: str) -> None:
    assert hooks.mend(text, folder) == mended
