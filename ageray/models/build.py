"""From a configuration to a network with its initial weights.

This is the only module that knows every model by name.

Shape letters: B faces, S side of the aligned face, K age bins, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import load as load_safetensors

from ageray import experiment, storage
from ageray.config import loads as settings_of
from ageray.config import zoo
from ageray.errors import UserError
from ageray.models import cluster_cnn
from ageray.models.baseline import Classifier
from ageray.models.deep_embedding import DeepEmbedding
from ageray.models.dhaa import Dhaa
from ageray.models.ensemble import Ensemble
from ageray.models.network import REMEDY, AgeNetwork
from ageray.models.residual_cnn import ResidualCnn
from ageray.models.siamese import Siamese
from ageray.models.two_tails import TwoTails

_BUILDERS: dict[str, Callable[[Any], AgeNetwork]] = {
    "baseline": Classifier,
    "cluster_cnn": cluster_cnn.make,
    "deep_embedding": DeepEmbedding,
    "dhaa": Dhaa,
    "residual_cnn": ResidualCnn,
    "siamese": Siamese,
    "ensemble": lambda config: _ensemble(config),
    "two_tails": TwoTails,
}


def _ensemble(config: experiment.model.Ensemble) -> AgeNetwork:
    """The members with random weights: an ensemble's bundle brings those of all."""
    networks: list[AgeNetwork] = []
    for member in config.members:
        networks.append(build(member.model, pretrained=False))
    return Ensemble(config, networks)


def build(config: experiment.Model, seed: int | None = None, pretrained: bool = True) -> AgeNetwork:
    """The network of a configuration, on CPU, in training mode.

    seed: of the random initial weights. pretrained: load `config.weights`; False for a bundle,
    which has its own weights.
    Raises UserError if the weights are missing or are those of another network.
    """
    if pretrained and config.name == "ensemble":
        raise UserError(
            "model.name=ensemble: an ensemble is put together from trained models, not trained; "
            "run python -m ageray.zoo.combine ensemble FOLDER MODEL MODEL"
        )
    if not pretrained:
        config = config.model_copy(update={"weights": "none"})
    with torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.manual_seed(seed)
        try:
            network = _BUILDERS[config.name](config)
        except OSError as error:  # torchvision's download
            raise UserError(
                f"model.weights=imagenet: cannot be downloaded here ({error}); {REMEDY}"
            ) from None
    if config.weights not in ("none", "imagenet"):
        load_start(network, config.weights, config.ages)
    return network.to(memory_format=torch.channels_last)


def load_start(network: AgeNetwork, weights: str, ages: tuple[int, int] | None = None) -> None:
    """Loads a safetensors file: a whole model of our own, or published weights of the backbone.

    weights: its path or url, or a model: `zoo:NAME`, a bundle or a run folder. ages: the network's
    first and last bin; a model whose age layer is taken over must have the same.
    Raises UserError if the file cannot be read or belongs to another network.
    """
    file = ""
    try:
        file = _weights_file(weights)
        state = load_safetensors(storage.read_bytes(file))
    except UserError as error:
        raise UserError(f"model.weights={str(error).removeprefix('model.weights=')}") from None
    except Exception as error:  # safetensors raises many types
        raise UserError(f"model.weights={weights}: not a safetensors file ({error}); {REMEDY}") from None
    try:
        if state.keys() == network.state_dict().keys():
            if file != weights and ages is not None:
                _check_ages(file, weights, ages)
            tensors = {}
            for name, tensor in state.items():
                tensors[name] = tensor.float() if tensor.is_floating_point() else tensor
            network.load_state_dict(tensors)
        else:
            network.load_backbone(state)
    except (KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        model = getattr(network.get_backbone(), "name", "this network")
        raise UserError(f"model.weights={weights}: not weights of {model} ({reason}); {REMEDY}") from None


def _check_ages(file: str, weights: str, ages: tuple[int, int]) -> None:
    """Raises UserError if the bundle with this file has other bins: as many of them would fit, and
    every age would be wrong by their distance."""
    settings = storage.join(file.rpartition("/")[0], "config.yaml")
    if storage.exists(settings):
        other = settings_of(storage.read_text(settings), settings).model.ages
        if other != ages:
            raise UserError(
                f"model.weights={weights}: has model.ages={list(other)}, this model {list(ages)}; set "
                f"model.ages={list(other)}"
            )


def _weights_file(weights: str) -> str:
    """The file that `model.weights` names; of a bundle or a run folder, its tensors."""
    file = zoo.weights_file(weights)
    if file.endswith(".safetensors"):  # who may read this key alone may not ask for those below it
        return file
    for name in ("model.safetensors", "bundle/model.safetensors"):
        if storage.exists(storage.join(file, name)):
            return storage.join(file, name)
    return file
