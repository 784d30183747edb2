"""The commands in README and docs: each parses, and its files and settings exist. Every link of a
page has a target."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

import ageray
from ageray import config
from ageray.commands import COMMANDS
from ageray.config import shipped
from ageray.config.paper_table import read_table
from ageray.serve.settings import Service

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(
    rf"(?:^ *ageray|:cpu ageray|-- *ageray|python -m ageray|python -m jobs[.]) *({'|'.join(COMMANDS)})\b(.*)"
)
_PLACEHOLDERS = ("RECIPE", "$SMALL", "OVERRIDES", "=E")  # commands that stand for many


def commands(text: str) -> list[tuple[str, list[str]]]:
    """Job and words of each command of a page's blocks.

    Lines that end in a backslash are joined; comments and optional words are left out.
    """
    pairs = []
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        match = COMMAND.search(line)
        shown = line.strip().startswith(("python", "ray job", "ageray", "docker"))
        if not match or not shown or any(mark in line for mark in _PLACEHOLDERS):
            continue
        words = match[2]
        if "'" not in words:
            words = re.sub(r"\[[^\]=]*\]|\[key=value \.\.\.\]|\.\.\.", "", words)
        pairs.append((match[1], shlex.split(words, comments=True)))
    return pairs


SHOWN = [(page.name, job, words) for page in PAGES for job, words in commands(page.read_text())]


def test_there_are_commands_to_check() -> None:
    assert {job for _, job, _ in SHOWN} == set(COMMANDS)
    assert len(SHOWN) > 20


@pytest.mark.parametrize(
    ("page", "job", "words"),
    SHOWN,
    ids=[f"{page}-{job}-{number}" for number, (page, job, _) in enumerate(SHOWN)],
)
def test_a_command_that_a_page_shows_is_one(
    page: str, job: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    parser = importlib.import_module(f"ageray.commands.{job}").parser()
    parser.parse_intermixed_args(words)  # ends the test with SystemExit where it does not parse
    files = [word for word in words if word.endswith(".yaml") or shipped.is_name(word)]
    assert all((ROOT / shipped.path_of(file)).is_file() for file in files)
    if job == "serve":
        config.parse(Service, overrides=[word for word in words if re.match(r"[a-z_.]+=", word)])
    else:
        settings = [word for word in words if re.match(r"[a-z_]+\.[a-z_.0-9]+=", word)]
        experiments = [files]
        recipe = []
        if "--table" in words:  # the settings hold for the recipes of its rows
            table = words[words.index("--table") + 1]
            recipe = [str(Path(shipped.path_of(table)).parent / read_table(table).rows[0].recipe)]
            files.remove(table)
        if "--cross" in words or "--table" in words:  # every file is a set of its own
            experiments = [[*recipe, file] for file in files]
        for paths in experiments:
            config.read(paths, settings)


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_what_a_page_links_to_is_there(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in link:
            assert (page.parent / link).exists(), link


def blocks(page: Path, language: str = "") -> list[str]:
    """The blocks of a page in this language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def shown(pattern: str) -> set[str]:
    """What the first group of a pattern matches in the blocks of all pages."""
    texts = [block for page in PAGES for block in blocks(page, r"\w*")]
    return {match for text in texts for match in re.findall(pattern, text, re.MULTILINE)}


def test_other_programs_find_what_a_page_gives_them() -> None:
    """Targets of make, extras of pip, files of kubectl and Ray, modules of python."""
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert "score" in shown(r"^ *make ([a-z]+)") <= set(targets)
    extras = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert "onnx" in shown(r"ageray\[(\w+)\]") <= set(extras)
    files = shown(r"kubectl apply -f (\S+)") | shown(r"ray (?:up|down|dashboard) (\S+)")
    assert len(files) > 2
    assert all((ROOT / file).is_file() for file in files)
    modules = shown(r"python -m (ageray\.[a-z_.]+|benchmarks\.\w+)")
    assert "ageray.zoo.combine" in modules
    assert all(importlib.util.find_spec(module) for module in modules)
    scripts = shown(r"(?:python|\$PY) (\w+/[\w/]+\.py)")
    assert all((ROOT / script).is_file() for script in scripts)


def test_addresses_of_the_service_are_routes() -> None:
    source = "".join(file.read_text() for file in (ROOT / "ageray" / "serve").glob("*.py"))
    routes = [re.sub(r"\{\w+\}", "[^/]+", route) for route in re.findall(r'app\.\w+\(\s*"(/[^"]*)"', source)]
    addresses = shown(r"https?://[\w.]+:8000(/[\w./-]*)")
    assert "/v1/score" in addresses
    for address in addresses:
        assert any(re.fullmatch(route, address) for route in routes), address


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_python_of_a_page_compiles_and_names_what_there_is(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block, page.name, "exec")
        for name in re.findall(r"\bageray\.(\w+)\(", block):
            assert hasattr(ageray, name), name
