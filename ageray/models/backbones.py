"""Feature extractors by name: RGB faces in 0..255 in, pooled features out.

Shape letters: B faces, S side of the face, D features.

All but those of `_OWN` are torchvision's, under torchvision's own parameter names, without their classifier and auxiliary heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ageray.experiment.model import Backbone as Name
from ageray.models.edgeface import EdgeFace
from ageray.models.googlenet import GoogLeNet
from ageray.models.mobilefacenet import MobileFaceNet
from ageray.models.mobilenet import MobileNetV1
from ageray.models.network import Backbone, no_imagenet

Colour = tuple[float, float, float]
_IMAGENET: tuple[Colour, Colour] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF: tuple[Colour, Colour] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""The networks that torchvision ported from TensorFlow take (x - 0.5) / 0.5. Its own
`transform_input` computes that from pictures normalised by ImageNet's mean."""


@dataclass(frozen=True)
class _Network:
    """What the backbone needs to know of one of torchvision's networks."""

    features: int
    classifier: tuple[str, ...]
    """Parts left out: the last linear layer, and the dropout before it, because models have their
    own `dropout`."""
    auxiliary: tuple[str, ...] = ()
    """Parts left out that only torchvision's own training uses."""
    least_side: int = 16
    """The smallest face in pixels that the poolings do not reduce to nothing; 16 is the least
    `align.size`."""
    normalise: tuple[Colour, Colour] = _IMAGENET
    """Mean and standard deviation of the colours, as shares of 255."""


_NETWORKS: dict[Name, _Network] = {
    "resnet18": _Network(512, ("fc",)),
    "resnet34": _Network(512, ("fc",)),
    "resnet50": _Network(2048, ("fc",)),
    # The features are those of fc7, after its ReLU and its dropout.
    "vgg16": _Network(4096, ("classifier.6",), least_side=32),
    "googlenet": _Network(1024, ("fc", "dropout"), ("aux1", "aux2"), normalise=_HALF),
    "inception_v3": _Network(2048, ("fc", "dropout"), ("AuxLogits",), least_side=75, normalise=_HALF),
    # classifier.0 normalises the pooled features
    "convnext_tiny": _Network(768, ("classifier.2",), least_side=32),
    "efficientnet_b0": _Network(1280, ("classifier.1", "classifier.0")),
}


class TorchvisionBackbone(Backbone):
    """One of torchvision's networks without its classifier: (B, 3, S, S) to (B, D)."""

    def __init__(self, name: Name, imagenet: bool = False) -> None:
        """imagenet: load torchvision's IMAGENET1K_V1 weights instead of random ones.

        They are downloaded once. Raises OSError if that fails.
        """
        super().__init__()
        spec = _NETWORKS[name]
        self.name, self.features, self.least_side = name, spec.features, spec.least_side
        self._left_out = tuple(f"{part}." for part in (*spec.classifier, *spec.auxiliary))
        self.network = _without_classifier(name, spec, imagenet)
        for key, values in zip(("mean", "std"), spec.normalise, strict=True):
            self.register_buffer(key, 255 * torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, face_B3SS: Tensor) -> Tensor:
        """Float RGB in 0..255 to features (B, D)."""
        features_BD: Tensor = self.network((face_B3SS - self.mean) / self.std)
        return features_BD

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        """Loads torchvision's state dict of this network, without classifier and auxiliary heads.

        Raises RuntimeError if it belongs to another network.
        """
        own = {}
        for name, tensor in state.items():
            if not name.startswith(self._left_out):
                own[name] = tensor.float() if tensor.is_floating_point() else tensor
        self.network.load_state_dict(own)


def _without_classifier(name: Name, spec: _Network, imagenet: bool) -> nn.Module:
    """torchvision's network of that name without the parts that `spec` leaves out."""
    import torchvision  # imported here, because it takes seconds and our own networks do not need it

    options: dict[str, Any] = {}
    if imagenet:
        options["weights"] = "IMAGENET1K_V1"
    elif spec.auxiliary:
        # With weights, torchvision raises an error for these options. Without weights it warns if
        # they are missing.
        options.update(aux_logits=False, init_weights=True)
    network: Any = torchvision.models.get_model(name, **options)
    for part in spec.classifier:
        network.set_submodule(part, nn.Identity())
    if spec.auxiliary:
        network.aux_logits = network.transform_input = False
        for part in spec.auxiliary:
            setattr(network, part, None)
    return cast(nn.Module, network)


_OWN: dict[Name, tuple[type[Backbone], str]] = {
    "bvlc_googlenet": (GoogLeNet, "the original GoogLeNet in torchvision"),
    "mobilenet_v1": (MobileNetV1, "MobileNetV1 in torchvision"),
    "edgeface_s": (EdgeFace, "EdgeFace in torchvision"),
    "mobilefacenet": (MobileFaceNet, "MobileFaceNet in torchvision"),
}
"""Networks of this package, and what the message says where `imagenet` is asked of them."""


def make(name: Name, imagenet: bool = False) -> Backbone:
    """The backbone of that name; with torchvision's ImageNet weights where `imagenet`. Raises UserError where there are none."""
    if name not in _OWN:
        return TorchvisionBackbone(name, imagenet)
    network, described = _OWN[name]
    if imagenet:
        raise no_imagenet(described, "name a safetensors file of its published training, or none")
    return network()
