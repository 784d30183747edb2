"""A deployable model on disk: `model.safetensors`, `config.yaml` (resolved), `card.json`. Loading verifies the hash and never unpickles."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from ageray import config, storage
from ageray.calibration import Calibration
from ageray.errors import UserError
from ageray.experiment import Experiment
from ageray.models.model import build
from ageray.models.network import AgeNetwork

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.yaml", "card.json"
IN_RUN = "bundle"
"""Name of the bundle's folder within a run folder."""
_ZOO = Path(__file__).parent / "zoo"


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle. `card` is what `card.json` says, `settings` the text of `config.yaml`; `uri` is where it came from."""

    uri: str
    experiment: Experiment
    card: dict[str, Any]
    weights: bytes
    settings: str

    @property
    def identity(self) -> str:
        """Changes whenever the weights, the configuration or the calibration do: 16 hex digits."""
        parts = [self.card["sha256"], self.settings, json.dumps(self.card.get("calibration"), sort_keys=True)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    @property
    def calibration(self) -> Calibration:
        """What `ageray.calibration` learnt on the validation part."""
        return Calibration.from_card(self.card.get("calibration"))

    def network(self) -> AgeNetwork:
        """The network with its weights, float32, in eval mode, on CPU. Raises UserError if weights and configuration do not fit."""
        network = build(self.experiment.model, pretrained=False)
        try:
            state = load_safetensors(self.weights)
        except Exception as error:  # the library raises what its parser met
            raise UserError(f"{self.uri}: {WEIGHTS} is not a safetensors file ({error}); copy the bundle again") from None
        try:
            network.load_state_dict({name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()})
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{self.uri}: {WEIGHTS} does not fit {CONFIG} ({reason}); copy both from the same bundle") from None
        return network.eval().requires_grad_(False)


def resolve(model: str) -> str:
    """The bundle's folder that MODEL names: `zoo:NAME`, a bundle, or a run folder. Raises UserError if there is none."""
    if model.startswith("zoo:"):
        names = sorted(path.parent.name for path in _ZOO.glob(f"*/{CARD}"))
        if model[4:] not in names:
            raise UserError(f"{model}: no such model in the zoo; it has {', '.join('zoo:' + name for name in names) or 'none'}")
        return str(_ZOO / model[4:])
    for folder in (model, storage.join(model, IN_RUN)):
        if storage.exists(storage.join(folder, CARD)):
            return folder
    raise UserError(f"{model}: not a model; name zoo:default, a bundle (a folder with {CARD}) or the folder of a finished training run")


def load(model: str) -> Bundle:
    """Loads and verifies a bundle. Raises UserError if it is not one, is incomplete, or its weights are not those of its card."""
    folder = resolve(model)
    card = _read_card(folder)
    settings = storage.read_text(storage.join(folder, CONFIG))
    experiment = config.loads(settings, storage.join(folder, CONFIG))
    weights = storage.read_bytes(storage.join(folder, WEIGHTS))
    found = hashlib.sha256(weights).hexdigest()
    if found != card.get("sha256"):
        raise UserError(
            f"{folder}: {WEIGHTS} has sha256 {found[:12]}..., the card says {str(card.get('sha256'))[:12]}...; copy the bundle again"
        )
    return Bundle(folder, experiment, card, weights, settings)


def _read_card(folder: str) -> dict[str, Any]:
    try:
        card = json.loads(storage.read_text(storage.join(folder, CARD)))
    except json.JSONDecodeError as error:
        raise UserError(f"{folder}: {CARD} is not JSON ({error}); copy the bundle again") from None
    if not isinstance(card, dict):
        raise UserError(f"{folder}: {CARD} is not a card (a JSON object); copy the bundle again")
    return card


def save(folder: str, network: nn.Module, experiment: Experiment, card: dict[str, Any]) -> None:
    """Writes a bundle; `card.json` comes last, so that a folder that has it is complete.

    Matrices are stored as float16 (an age moves by about 0.01 years), vectors as float32.
    """
    weights = save_safetensors({name: _stored(tensor) for name, tensor in network.state_dict().items()})
    full = {**card, "code": f"ageray {version('ageray')}", "sha256": hashlib.sha256(weights).hexdigest()}
    storage.make_folder(folder)
    storage.write_bytes(storage.join(folder, WEIGHTS), weights)
    storage.write_text(storage.join(folder, CONFIG), config.dump(experiment))
    write_card(folder, full)


def write_card(folder: str, card: dict[str, Any]) -> None:
    """Replaces a bundle's card, as when metrics or a calibration become known."""
    storage.write_text(storage.join(folder, CARD), json.dumps(card, indent=1) + "\n")


def _stored(tensor: Tensor) -> Tensor:
    half = tensor.detach().cpu().contiguous()
    if tensor.is_floating_point() and tensor.ndim > 1 and float(half.abs().max()) < torch.finfo(torch.float16).max:
        half = half.half()
    return half
