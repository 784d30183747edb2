"""The models that ship, by name: `zoo:NAME` and `zoo:NAME@VERSION`.

The folder of a model is `ageray/zoo/NAME/VERSION`. It is a bundle (`ageray.bundle`).
"""

from __future__ import annotations

from pathlib import Path

from ageray.errors import UserError

FOLDER = Path(__file__).resolve().parents[1] / "zoo"
PREFIX = "zoo:"
CARD = "card.json"
"""The file of a bundle without which a folder is no model."""


def versions() -> dict[str, list[int]]:
    """The versions of each shipped model, ascending."""
    models: dict[str, list[int]] = {}
    for card in sorted(FOLDER.glob(f"*/*/{CARD}")):
        if card.parent.name.isdigit():
            models.setdefault(card.parent.parent.name, []).append(int(card.parent.name))
    for numbers in models.values():
        numbers.sort()
    return models


def weights_file(weights: str) -> str:
    """The file that `model.weights` names: a path or url as it is; of `zoo:NAME` its tensors.

    Raises UserError as `folder_of` does.
    """
    if not weights.startswith(PREFIX):
        return weights
    return str(Path(folder_of(weights), "model.safetensors"))


def folder_of(model: str) -> str:
    """The folder of `zoo:NAME@VERSION`; for `zoo:NAME`, of its newest version.

    Raises UserError if there is no such model or version.
    """
    name, _, version = model.removeprefix(PREFIX).partition("@")
    models = versions()
    if name not in models:
        names = ", ".join(f"{PREFIX}{each}" for each in models) or "none"
        raise UserError(f"{model}: no such model in the zoo; it has {names}")
    if "@" not in model:
        return str(FOLDER / name / str(models[name][-1]))
    if version not in map(str, models[name]):
        names = ", ".join(f"{PREFIX}{name}@{each}" for each in models[name])
        raise UserError(f"{model}: no such version in the zoo; it has {names}")
    return str(FOLDER / name / version)
