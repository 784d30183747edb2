"""Feature extractors by name: RGB faces in 0..255 in, pooled features out."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor, nn

from ageray.experiment.model import Backbone as Name
from ageray.models.googlenet import GoogLeNet
from ageray.models.network import no_imagenet

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


class Backbone(nn.Module):
    """What a model builds on. forward: float RGB in 0..255, (B, 3, S, S), to (B, features)."""

    features: int

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        """Takes published weights; raises KeyError or RuntimeError if they are another network's."""
        raise NotImplementedError


class ResNet18(Backbone):
    """torchvision's ResNet-18 without its classifier: (B, 512)."""

    features = 512

    def __init__(self, imagenet: bool = False) -> None:
        super().__init__()
        self.network = torchvision.models.resnet18(weights="IMAGENET1K_V1" if imagenet else None)
        self.network.fc = nn.Identity()
        self.register_buffer("mean", 255 * torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(_STD).view(1, 3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, face_B3SS: Tensor) -> Tensor:
        """Float RGB in 0..255, (B, 3, S, S), to (B, 512)."""
        features: Tensor = self.network((face_B3SS - self.mean) / self.std)
        return features

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        """Takes a state dict of torchvision's resnet18; its classifier is left out. Raises RuntimeError if it differs."""
        self.network.load_state_dict({name: tensor.float() for name, tensor in state.items() if not name.startswith("fc.")})


def make(name: Name, imagenet: bool = False) -> Backbone | GoogLeNet:
    """The backbone of that name; with torchvision's ImageNet weights where `imagenet`. Raises UserError where there are none."""
    if name == "bvlc_googlenet":
        if imagenet:
            raise no_imagenet("the original GoogLeNet in torchvision", "name a safetensors file of BVLC's training, or none")
        return GoogLeNet()
    if name == "resnet18":
        return ResNet18(imagenet)
    raise NotImplementedError(name)
