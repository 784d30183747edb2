"""The vocabulary as a whole: all it allows dumps and loads, every key is documented, every
file that ships is valid."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ageray import config
from ageray.config import messages
from ageray.config.page import settings_page
from ageray.config.yaml_text import YamlText
from ageray.experiment import Experiment

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"


def values(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that a schema allows, as JSON has them; keys with a default are there or not."""
    if "discriminator" in schema:
        return st.one_of([values(member) for member in messages.members(schema["oneOf"])])
    if len(found := messages.members([schema])) > 1 or found[0] is not schema:
        return st.one_of([values(branch) for branch in found])
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum", [schema.get("const")]))
    if schema["type"] == "array":
        items = [values(item) for item in schema.get("prefixItems", [])]
        return (
            st.tuples(*items).map(list)
            if items
            else st.lists(values(schema["items"]), min_size=schema.get("minItems", 0), max_size=3)
        )
    if schema["type"] == "object":
        fields = {name: values(field) for name, field in schema["properties"].items()}
        required = {
            name
            for name, field in schema["properties"].items()
            if "const" in field or name in schema.get("required", [])
        }
        return st.fixed_dictionaries(
            {name: field for name, field in fields.items() if name in required},
            optional={name: field for name, field in fields.items() if name not in required},
        )
    scalars: dict[str, st.SearchStrategy[Any]] = {
        "null": st.none(),
        "boolean": st.booleans(),
        "string": st.text(min_size=schema.get("minLength", 0)),
    }
    if "pattern" in schema:
        return st.from_regex(schema["pattern"].replace("$", r"\Z"), fullmatch=True, alphabet=ASCII)
    return scalars[schema["type"]] if schema["type"] in scalars else numbers(schema)


def numbers(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    low, high = schema.get("minimum"), schema.get("maximum")
    if schema["type"] == "integer":
        return st.integers(low, high)
    return st.floats(
        min_value=schema.get("exclusiveMinimum", low),
        max_value=schema.get("exclusiveMaximum", high),
        exclude_min="exclusiveMinimum" in schema,
        exclude_max="exclusiveMaximum" in schema,
        allow_nan=False,
        allow_infinity=False,
    )


ASCII = st.characters(max_codepoint=126)
KEPT = [name for name, field in Experiment.model_fields.items() if not field.exclude]
"""What an experiment consists of: all but `tune`, which says what to search."""
EXPERIMENTS = {
    **messages.schema(Experiment),
    "properties": {name: messages.schema(Experiment)["properties"][name] for name in KEPT},
}


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(values(EXPERIMENTS))
def test_what_is_dumped_loads_back(content: dict[str, Any]) -> None:
    try:
        made = Experiment.model_validate_json(json.dumps(content))
    except ValidationError as error:
        # Only a rule across keys may fail. Pydantic then also calls a list too short without the
        # item that failed.
        if {item["type"] for item in error.errors()} - {"too_short"} != {"value_error"}:
            raise
        assume(False)
    text = config.dump(made)
    assert config.loads(text, "config.yaml") == made
    assert list(yaml.safe_load(text)) == KEPT
    assert config.digest(config.loads(text, "config.yaml")) == config.digest(made)


def test_the_editors_schema_is_current() -> None:
    command = [sys.executable, "-m", "ageray.config"]
    fresh = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    hint = "run: python -m ageray.config > configs/experiment.schema.json"
    assert (CONFIGS / "experiment.schema.json").read_text() == fresh, hint
    jsonschema.Draft202012Validator.check_schema(json.loads(fresh))


def test_the_page_of_all_settings_is_fresh_and_complete() -> None:
    page = settings_page()
    hint = "run: python -m ageray.config --page > docs/settings.md"
    assert (CONFIGS.parent / "docs" / "settings.md").read_text() == page, hint
    leaves = config.flat(Experiment().model_dump(mode="json", exclude={"tune"}))
    for key in leaves:
        assert f"| `{key}` |" in page or f"| `{key.rpartition('.')[0]}` |" in page, key
    assert "| `loss.neighborhood.sigma` | `5.0` | number, > 0 |" in page
    assert "| `train.augment.flip` |" in page
    assert "`model`: `dhaa`" in page


def fields(schema: dict[str, Any], keys: tuple[str, ...] = ()) -> list[tuple[str, dict[str, Any]]]:
    """Every key of the vocabulary, dotted, with its schema."""
    below = [
        ((*keys, name), field)
        for member in messages.members([schema])
        for name, field in member.get("properties", {}).items()
    ]
    return [item for path, field in below for item in [(".".join(path), field), *fields(field, path)]]


@pytest.mark.parametrize(("name", "field"), fields(messages.schema(Experiment)))
def test_every_key_is_documented_and_its_mistakes_can_be_told(name: str, field: dict[str, Any]) -> None:
    assert field.get("description"), f"{name} has no description"
    text = messages.wrong_value(math.pi, [field])
    assert "any value" not in text
    assert not text.endswith("(allowed: )")
    # `key=null` takes the key away: to mean 'none' as well, that must be the default wherever
    # null is allowed
    nullable = any(branch.get("type") == "null" for branch in messages.members([field]))
    assert not nullable or field["default"] is None


RECIPES, DATA, SCALE = (
    sorted(CONFIGS.glob(pattern)) for pattern in ("*.yaml", "data/*.yaml", "scale/*.yaml")
)
RECIPES = [
    file for file in RECIPES if "\nmodel:" in file.read_text()
]  # serve.yaml beside them is Ray Serve's


@pytest.mark.parametrize("recipe", [None, *RECIPES], ids=lambda path: path and path.stem)
@pytest.mark.parametrize("data", DATA, ids=lambda path: path.stem)
@pytest.mark.parametrize("scale", SCALE, ids=lambda path: path.stem)
def test_files_that_ship_go_together(recipe: Path | None, data: Path, scale: Path) -> None:
    files = [str(path) for path in (recipe, data, scale) if path]
    data_settings = config.load(files).data
    assert data_settings.shards or all(each.shards for each in data_settings.sets)
    assert data_settings.shards or data_settings.sets


@pytest.mark.parametrize("path", [*RECIPES, *DATA, *SCALE], ids=lambda path: path.stem)
def test_a_file_that_ships_is_valid_for_editors_and_keeps_to_its_keys(path: Path) -> None:
    content = YamlText(path.name, 0, True, []).read(path.read_text()).plain()  # type: ignore[union-attr]
    jsonschema.validate(content, config.json_schema())
    allowed = {
        "data": {"data", "protocol"},
        "scale": {"scale"},
        "configs": set(Experiment.model_fields) - {"data", "protocol", "scale"},
    }
    assert set(content) <= allowed[path.parent.name]
    schemas = re.findall(r"^# yaml-language-server: \$schema=(.*)$", path.read_text(), re.MULTILINE)
    assert all((path.parent / schema).resolve() == CONFIGS / "experiment.schema.json" for schema in schemas)


def test_configuration_needs_neither_torch_nor_ray() -> None:
    code = "import sys, ageray.config; print(sorted({'torch', 'ray', 'numpy'} & set(sys.modules)))"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        == "[]\n"
    )
