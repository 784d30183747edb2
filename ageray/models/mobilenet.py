"""MobileNetV1 (Howard et al. 2017, arXiv 1704.04861, Table 1), width 1.0, as face networks are
published in it: batch normalisation folded into the biases, ReLU6, TensorFlow's SAME padding.

Shape letters: B faces, S side of the face, C channels, H height, W width, D features, K ages of
a published age layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ageray.models.network import Backbone, PublishedHead

_MEAN_RGB = (123.68, 116.779, 103.939)
_STEM = 32
_CHANNELS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
"""Output channels of the thirteen depthwise separable blocks (Table 1)."""
_STRIDED = (1, 3, 5, 11)
"""The blocks whose depthwise convolution has stride 2."""


class SameConv2d(nn.Conv2d):
    """A 3x3 convolution with TensorFlow's SAME padding: (B, C, H, W) to (B, C', ceil(H /
    stride), ceil(W / stride)).

    Stride 2 pads an even side by one pixel at the right and at the bottom only, an odd side by
    one pixel at both ends; torch's own padding=1 would look at other pixels of an even side.
    """

    def forward(self, input: Tensor) -> Tensor:
        """One convolution."""
        if self.stride[0] == 1:
            return F.conv2d(input, self.weight, self.bias, padding=1, groups=self.groups)
        top, left = input.shape[-2] % 2, input.shape[-1] % 2
        padded_BCHW = F.pad(input, (left, 1, top, 1))
        return F.conv2d(padded_BCHW, self.weight, self.bias, stride=self.stride, groups=self.groups)


class MobileNetV1(Backbone):
    """RGB faces in 0..255, (B, 3, S, S), to pooled features (B, 1024); any side from 32 pixels.

    Departures from the paper: none in shape; batch normalisation is folded into the biases, so
    nothing holds the scale of the activations while the network trains. Use small learning rates
    with a long warm-up.
    """

    name = "mobilenet_v1"
    least_side = 32

    def __init__(self) -> None:
        super().__init__()
        self.features = _CHANNELS[-1]
        self.register_buffer("mean", torch.tensor(_MEAN_RGB).view(1, 3, 1, 1), persistent=False)
        self.mean: Tensor
        self.conv1 = SameConv2d(3, _STEM, 3, stride=2)
        self.dw, self.pw = nn.ModuleList(), nn.ModuleList()
        channels = _STEM
        for index, outputs in enumerate(_CHANNELS):
            stride = 2 if index in _STRIDED else 1
            self.dw.append(SameConv2d(channels, channels, 3, stride=stride, groups=channels))
            self.pw.append(nn.Conv2d(channels, outputs, 1))
            channels = outputs
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def forward(self, face_B3SS: Tensor) -> Tensor:
        """Float RGB in 0..255 to features (B, D)."""
        x_BCHW = F.relu6(self.conv1(face_B3SS - self.mean))
        for depthwise, pointwise in zip(self.dw, self.pw, strict=True):
            x_BCHW = F.relu6(pointwise(F.relu6(depthwise(x_BCHW))))
        return x_BCHW.mean((2, 3))

    def blocks(self) -> list[nn.Module]:
        """The first convolution, then the thirteen separable blocks."""
        separable = [nn.ModuleList(pair) for pair in zip(self.dw, self.pw, strict=True)]
        return [self.conv1, *separable]

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        """Takes weights of HSE_FaceRec_tf (BGR input): `conv1`, `dw.0` to `dw.12`, `pw.0` to
        `pw.12`; its further layers are left to `published_head`. Raises KeyError, RuntimeError
        if they differ."""
        heads = ("feats.", "age.", "gender.")
        own = {name: tensor.float() for name, tensor in state.items() if not name.startswith(heads)}
        own["conv1.weight"] = own["conv1.weight"].flip(1)  # BGR to RGB
        self.load_state_dict(own)

    def published_head(self, state: dict[str, Tensor]) -> PublishedHead | None:
        """`feats` (1024 to 256, then ReLU) and `age` (256 to 100: ages 0 to 99) of the same
        file."""
        names = ("feats.weight", "feats.bias", "age.weight", "age.bias")
        if any(name not in state for name in names):
            return None
        feats_weight, feats_bias, age_weight, age_bias = (state[name].float() for name in names)
        return PublishedHead(feats_weight, feats_bias, age_weight, age_bias, first_age=0)
