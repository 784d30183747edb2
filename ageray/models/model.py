"""Configuration to network: the one place that knows every model by name, and how a starting point is loaded.

Shape letters: B faces, S side of the aligned face, K age bins, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from ageray import experiment, storage
from ageray.errors import UserError
from ageray.models.backbones import ResNet18
from ageray.models.googlenet import GoogLeNet

Batch = dict[str, Tensor]
Backbone = GoogLeNet | ResNet18


class Classifier(nn.Module):
    """A backbone and one linear classifier over age bins: `baseline` (DHAA's Res18+EX) and `cluster_cnn` with its plain head.

    forward reads `face` (B, 3, S, S; RGB 0..255) and yields `logits` (B, K) and `embedding` (B, D).
    """

    outputs = frozenset({"logits", "embedding"})

    def __init__(self, backbone: Backbone, config: experiment.ModelBase) -> None:
        super().__init__()
        self.backbone = backbone
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(backbone.features, config.ages[1] - config.ages[0] + 1)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, batch: Batch) -> Batch:
        """Faces to logits and embedding."""
        embedding_BD = self.backbone(batch["face"])
        return {"logits": self.head(self.dropout(embedding_BD)), "embedding": embedding_BD}

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that start from nothing and take the full learning rate."""
        return self.head.parameters()


_REMEDY = "name another file, or none"


def _baseline(config: experiment.ModelBase) -> Classifier:
    try:
        return Classifier(ResNet18(imagenet=config.weights == "imagenet"), config)
    except OSError as error:
        raise UserError(f"model.weights=imagenet: cannot be downloaded here ({error}); {_REMEDY}") from None


def _cluster_cnn(config: experiment.ModelBase) -> Classifier:
    if config.weights == "imagenet":
        raise UserError(
            "model.weights=imagenet: torchvision has no weights of the original GoogLeNet; name a safetensors file of BVLC's training, or none"
        )
    return Classifier(GoogLeNet(), config)


_BUILDERS: dict[str, Callable[[experiment.ModelBase], Classifier]] = {"baseline": _baseline, "cluster_cnn": _cluster_cnn}


def build(config: experiment.Model, seed: int | None = None, pretrained: bool = True) -> Classifier:
    """The network of a configuration, on CPU, in training mode.

    seed: of the random initial weights. pretrained: load `config.weights`; a bundle that brings its own weights says False.
    Raises UserError if the weights are missing or are those of another network.
    """
    if not pretrained:
        config = config.model_copy(update={"weights": "none"})
    with torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.manual_seed(seed)
        network = _BUILDERS[config.name](config)
    if config.weights not in ("none", "imagenet"):
        load_start(network, config.weights)
    return network.to(memory_format=torch.channels_last)


def load_start(network: Classifier, weights: str) -> None:
    """Loads a safetensors file into the network: one of our own models whole, or the backbone's published weights."""
    try:
        state = load_safetensors(storage.read_bytes(weights))
    except UserError as error:
        raise UserError(f"model.weights={str(error).removeprefix('model.weights=')}") from None
    except Exception as error:  # the library raises what its parser met
        raise UserError(f"model.weights={weights}: not a safetensors file ({error}); {_REMEDY}") from None
    try:
        if state.keys() == network.state_dict().keys():
            network.load_state_dict({name: tensor.float() for name, tensor in state.items()})
        else:
            network.backbone.load_backbone(state)
    except (KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"model.weights={weights}: not weights of {type(network.backbone).__name__} ({reason}); {_REMEDY}") from None
