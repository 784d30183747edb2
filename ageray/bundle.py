"""A bundle: a folder with all files of a model, ready for use.

It has `model.safetensors`, `config.yaml` (complete) and `card.json`; `gallery.safetensors` if ages
come from the nearest training faces; and `features.safetensors` if the calibration uses the
distance from the training faces. Loading verifies the hashes and never unpickles. The card has the
hashes of the other files, and the bundle's identity, which covers the settings and the calibration
too. Cards of earlier versions have no identity.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ageray import __version__, config, storage
from ageray.calibration import Calibration
from ageray.config import zoo
from ageray.errors import UserError
from ageray.experiment import Experiment
from ageray.experiment.model import Decode

# Commands load a bundle to read its settings. Only a network needs torch: 4 s to import.
if TYPE_CHECKING:
    from torch import Tensor, nn

    from ageray.models.distance import FeatureDistance
    from ageray.models.gallery import Gallery
    from ageray.models.network import AgeNetwork

CARD = zoo.CARD
WEIGHTS, CONFIG, GALLERY = "model.safetensors", "config.yaml", "gallery.safetensors"
FEATURES = "features.safetensors"
"""The distribution of the training faces' features, which `unusual` needs."""
IN_RUN = "bundle"
"""Name of the bundle's folder in a run folder."""


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle."""

    uri: str
    experiment: Experiment
    card: dict[str, Any]
    """The content of `card.json`."""
    weights: bytes
    settings: str
    """The text of `config.yaml`."""
    faces: bytes | None = None
    """The content of `gallery.safetensors`, if there is one."""
    features: bytes | None = None
    """The content of `features.safetensors`, if there is one."""

    @property
    def identity(self) -> str:
        """16 hex digits that change with the weights, the configuration, the calibration, the
        gallery and the features."""
        return _identity(self.card, self.settings)

    def decoding(self, decode: Decode, calibrate: bool = True) -> Bundle:
        """The same weights with other settings of `model.decode`, for an evaluation.

        calibrate: false leaves out the card's calibration, so that ages are those of the decoding.
        Raises UserError for a gallery that the bundle has not.
        """
        if decode.method == "gallery" and self.faces is None:
            raise UserError(
                f"model.decode.method=gallery: {self.uri} has no {GALLERY}; train it with "
                "model.decode.method=gallery"
            )
        model = self.experiment.model.model_copy(update={"decode": decode})
        train = self.experiment.train.model_copy(update={"calibrate": calibrate})
        card, features = self.card, self.features
        if not calibrate:
            card = {name: value for name, value in card.items() if name not in ("calibration", "features")}
            features = None
        experiment = self.experiment.model_copy(update={"model": model, "train": train})
        return replace(self, experiment=experiment, card=card, features=features)

    @property
    def calibration(self) -> Calibration:
        """The calibration on the card; without one, the identity."""
        return Calibration.from_card(self.card.get("calibration"))

    def network(self) -> AgeNetwork:
        """The network with its weights, float32, in eval mode, on CPU.

        Raises UserError if the weights do not fit the configuration.
        """
        from safetensors.torch import load

        from ageray.models.build import build

        network = build(self.experiment.model, pretrained=False)
        try:
            state = load(self.weights)
        except Exception as error:  # the library has no base class for its errors
            raise UserError(
                f"{self.uri}: {WEIGHTS} is not a safetensors file ({error}); copy the bundle again"
            ) from None
        for name, tensor in state.items():
            if tensor.is_floating_point():
                state[name] = tensor.float()
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            raise UserError(
                f"{self.uri}: {WEIGHTS} does not fit {CONFIG} ({_reason(error)}); "
                "copy both from the same bundle"
            ) from None
        return network.eval().requires_grad_(False)

    def gallery(self) -> Gallery | None:
        """The training faces whose ages are averaged, on CPU; None if the model has a classifier.

        Raises UserError if the file is broken.
        """
        if self.faces is None:
            return None
        from safetensors.torch import load

        from ageray.models.gallery import Gallery

        try:
            return Gallery.from_tensors(load(self.faces))
        except Exception as error:  # the library has no base class for its errors
            raise UserError(
                f"{self.uri}: {GALLERY} is not a gallery ({_reason(error)}); copy the bundle again"
            ) from None

    def distance(self) -> FeatureDistance | None:
        """The distance of a face from the training faces, on CPU; None if the bundle has none.

        Raises UserError if the file is broken.
        """
        if self.features is None:
            return None
        from safetensors.torch import load

        from ageray.models.distance import FeatureDistance

        try:
            return FeatureDistance.from_tensors(load(self.features))
        except UserError as error:
            raise UserError(f"{self.uri}: {error}") from None
        except Exception as error:  # the library has no base class for its errors
            raise UserError(
                f"{self.uri}: {FEATURES} is not a safetensors file ({_reason(error)}); copy the bundle again"
            ) from None


def _reason(error: Exception) -> str:
    """The text of an error of another library, on one line of at most 200 characters."""
    return " ".join(str(error).split())[:200]


def resolve(model: str) -> str:
    """The bundle's folder of MODEL: `zoo:NAME`, `zoo:NAME@VERSION`, a bundle, or a run folder.

    Raises UserError if there is none.
    """
    if model.startswith(zoo.PREFIX):
        return zoo.folder_of(model)
    for folder in (model, storage.join(model, IN_RUN)):
        if storage.exists(storage.join(folder, CARD)):
            return folder
    raise UserError(
        f"{model}: not a model; name zoo:default, a bundle (a folder with {CARD}) "
        "or the folder of a finished training run"
    )


def model_for_workers(model: str) -> str:
    """MODEL in a form that processes on other machines and in other folders can load.

    A model of the zoo keeps its name, because each machine has its own installation. Any other
    becomes the absolute path or url of its bundle. Raises UserError if there is no such model.
    """
    folder = resolve(model)
    return model if model.startswith(zoo.PREFIX) else storage.absolute(folder)


def load(model: str) -> Bundle:
    """Loads and verifies a bundle.

    Raises UserError if it is not a bundle, if a file is missing, or if a file's hash is not the
    card's.
    """
    folder = resolve(model)
    card = _read_card(folder)
    settings = storage.read_text(storage.join(folder, CONFIG))
    experiment = config.loads(settings, storage.join(folder, CONFIG))
    weights = _read_verified(folder, WEIGHTS, card.get("sha256"))
    faces = None
    if isinstance(card.get("gallery"), dict):
        faces = _read_verified(folder, GALLERY, card["gallery"].get("sha256"))
    elif experiment.model.decode.method == "gallery":
        raise UserError(
            f"{folder}: model.decode.method=gallery needs {GALLERY}, and the card names none; "
            "copy the bundle again or train it anew"
        )
    features = None
    if isinstance(card.get("features"), dict):
        features = _read_verified(folder, FEATURES, card["features"].get("sha256"))
    if card.get("identity") not in (None, _identity(card, settings)):
        raise UserError(
            f"{folder}: {CONFIG} or the calibration on {CARD} is not what was saved (identity "
            f"{_identity(card, settings)}, the card says {card['identity']}); copy the bundle again"
        )
    return Bundle(folder, experiment, card, weights, settings, faces, features)


def _identity(card: dict[str, Any], settings: str) -> str:
    """See `Bundle.identity`. settings: the text of CONFIG."""
    parts = [card["sha256"], settings, json.dumps(card.get("calibration"), sort_keys=True)]
    for name in ("gallery", "features"):
        if isinstance(card.get(name), dict):
            parts.append(card[name]["sha256"])
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _read_verified(folder: str, name: str, expected: Any) -> bytes:
    content = storage.read_bytes(storage.join(folder, name))
    digest = hashlib.sha256(content).hexdigest()
    if digest != expected:
        raise UserError(
            f"{folder}: {name} has sha256 {digest[:12]}..., the card says {str(expected)[:12]}...; "
            "copy the bundle again"
        )
    return content


def _read_card(folder: str) -> dict[str, Any]:
    try:
        card = json.loads(storage.read_text(storage.join(folder, CARD)))
    except json.JSONDecodeError as error:
        raise UserError(f"{folder}: {CARD} is not JSON ({error}); copy the bundle again") from None
    if not isinstance(card, dict):
        raise UserError(f"{folder}: {CARD} is not a card (a JSON object); copy the bundle again")
    return card


def save(
    folder: str,
    network: nn.Module,
    experiment: Experiment,
    card: dict[str, Any],
    gallery: Gallery | None = None,
) -> None:
    """Writes a bundle. `card.json` is written last, so that a folder with a card is complete.

    Matrices are stored as float16 (an age changes by about 0.01 years), vectors as float32.
    gallery: for `decode.method: gallery`. It has no pictures, only embeddings of the training
    faces with their ages, genders and subject numbers.
    """
    from safetensors.torch import save as save_safetensors

    assert gallery is not None or experiment.model.decode.method != "gallery"
    weights = save_safetensors(_compact(network.state_dict()))
    full = {**card, "code": f"ageray {__version__}", "sha256": hashlib.sha256(weights).hexdigest()}
    storage.make_folder(folder)
    storage.write_bytes(storage.join(folder, WEIGHTS), weights)
    storage.write_text(storage.join(folder, CONFIG), config.dump(experiment))
    if gallery is not None:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in gallery.tensors().items()}
        faces = save_safetensors(tensors)
        storage.write_bytes(storage.join(folder, GALLERY), faces)
        full["gallery"] = {
            "faces": len(gallery),
            "gender_by": gallery.gender_by,
            "sha256": hashlib.sha256(faces).hexdigest(),
        }
    write_card(folder, full)


def copy(loaded: Bundle, folder: str, card: dict[str, Any]) -> None:
    """Writes the files of a loaded bundle to `folder`, with another card, which comes last."""
    storage.make_folder(folder)
    storage.write_bytes(storage.join(folder, WEIGHTS), loaded.weights)
    storage.write_text(storage.join(folder, CONFIG), loaded.settings)
    if loaded.faces is not None:
        storage.write_bytes(storage.join(folder, GALLERY), loaded.faces)
    if loaded.features is not None:
        storage.write_bytes(storage.join(folder, FEATURES), loaded.features)
    write_card(folder, card)


def write_card(folder: str, card: dict[str, Any]) -> None:
    """Replaces a bundle's card, for example to add metrics or a calibration.

    The card gets the bundle's `identity`, with which `load` verifies the settings and the
    calibration.
    """
    settings = storage.join(folder, CONFIG)
    card = {name: value for name, value in card.items() if name != "identity"}
    if isinstance(card.get("sha256"), str) and storage.exists(settings):
        card["identity"] = _identity(card, storage.read_text(settings))
    storage.write_text(storage.join(folder, CARD), json.dumps(card, indent=1) + "\n")


def add_distance(folder: str, card: dict[str, Any], distance: FeatureDistance) -> dict[str, Any]:
    """Writes the file FEATURES into a bundle. Returns the card with the file's hash, for
    `write_card`, which the caller must call next."""
    from safetensors.torch import save as save_safetensors

    content = save_safetensors(_compact(distance.tensors()))
    storage.write_bytes(storage.join(folder, FEATURES), content)
    digest = hashlib.sha256(content).hexdigest()
    return card | {"features": {"rank": int(distance.basis.shape[1]), "sha256": digest}}


def _compact(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as they are stored: matrices within float16's range as float16."""
    import torch

    largest = torch.finfo(torch.float16).max
    compact = {}
    for name, tensor in tensors.items():
        stored = tensor.detach().cpu().contiguous()
        if tensor.is_floating_point() and tensor.ndim > 1 and float(stored.abs().max()) < largest:
            stored = stored.half()
        compact[name] = stored
    return compact
