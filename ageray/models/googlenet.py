"""The original GoogLeNet (Szegedy et al., CVPR 2015; BVLC's Caffe training).

The Cluster-CNN paper builds on it. torchvision's `googlenet` is another network: this one has no
batch normalisation, real 5x5 branches, local response normalisation and ceil-mode pooling.
Parameter names are Caffe's layer names with '/' written '_'.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ageray.models.network import Backbone

# Output channels of 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection (Table 1).
_INCEPTION = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
_POOL_BEFORE = ("4a", "5a")
_HALF = ("3a", "3b", "4a", "4b")  # 11 of 22 layers: three convolutions, and two in each block
_AUXILIARY = ("4a", "4d")
_MEAN_RGB = (123.0, 117.0, 104.0)


class _Normalise(torch.autograd.Function):
    """y = x s^-3/4 with s = 1 + band * x^2, where * is a 1x1 convolution.

    The gradient is g s^-3/4 - 3/2 x band * (g x s^-7/4). Autograd's own takes 1.7 times as long.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, band: Tensor) -> Tensor:
        s = F.conv2d(x.square(), band).add_(1.0)
        # Autocast on a GPU computes float32. The convolution of the backward pass needs x's type.
        root = s.rsqrt().to(x.dtype)
        power = root * root.sqrt()
        ctx.save_for_backward(x, s, power, band)
        return x * power

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        x, s, power, band = ctx.saved_tensors
        scaled = gradients[0] * power
        # `band` is symmetric, so the transposed convolution equals the convolution.
        return scaled.addcmul(F.conv2d((scaled * x).div_(s), band), x, value=-1.5), None


class ResponseNorm(nn.Module):
    """Local response normalisation across channels, x / (1 + alpha/5 sum_5 x^2)^0.75.

    It is a banded 1x1 convolution of squared channels: in training several times as fast as
    torch's own.
    """

    def __init__(self, channels: int, size: int = 5, alpha: float = 1e-4) -> None:
        super().__init__()
        index = torch.arange(channels)
        band = ((index[:, None] - index[None, :]).abs() <= size // 2).float() * (alpha / size)
        self.register_buffer("band", band[:, :, None, None], persistent=False)
        self.band: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to the same shape."""
        if x.dtype != torch.float16:
            normalised: Tensor = _Normalise.apply(x, self.band.to(x.dtype))
            return normalised
        # The squares of activations above 256 overflow in fp16.
        with torch.autocast(x.device.type, enabled=False):
            wide: Tensor = _Normalise.apply(x.float(), self.band.float())
            return wide.half()


class GoogLeNet(Backbone):
    """RGB faces in 0..255 to pooled features (B, 1024); the side is at least 32 pixels.

    depth: `half` ends after inception 4b, after 11 of the 22 layers, with features (B, 512). It is
    for small sets of small faces (Cluster-CNN paper, section 4.2, which does not say where to cut).
    """

    name = "bvlc_googlenet"
    least_side = 32

    def __init__(self, depth: Literal["full", "half"] = "full") -> None:
        super().__init__()
        self._blocks = tuple(_INCEPTION) if depth == "full" else _HALF
        self.register_buffer("mean", torch.tensor(_MEAN_RGB).view(1, 3, 1, 1), persistent=False)
        self.mean: Tensor
        self.layers = nn.ModuleDict()
        self._conv("conv1_7x7_s2", 3, 64, 7, stride=2)
        self._conv("conv2_3x3_reduce", 64, 64, 1)
        self._conv("conv2_3x3", 64, 192, 3)
        channels = 192
        for name in self._blocks:
            one, three_in, three, five_in, five, pool = _INCEPTION[name]
            self._conv(f"inception_{name}_1x1", channels, one, 1)
            self._conv(f"inception_{name}_3x3_reduce", channels, three_in, 1)
            self._conv(f"inception_{name}_3x3", three_in, three, 3)
            self._conv(f"inception_{name}_5x5_reduce", channels, five_in, 1)
            self._conv(f"inception_{name}_5x5", five_in, five, 5)
            self._conv(f"inception_{name}_pool_proj", channels, pool, 1)
            channels = one + three + five + pool
        self.features = channels
        self.norm1, self.norm2 = ResponseNorm(64), ResponseNorm(192)
        self._tapped: tuple[str, ...] = ()
        self.auxiliary_maps: list[Tensor] = []

    def _conv(self, name: str, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        layer = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)
        self.layers[name] = layer

    def _relu(self, name: str, x: Tensor) -> Tensor:
        return F.relu(self.layers[name](x), inplace=True)

    def _inception(self, name: str, x: Tensor) -> Tensor:
        layer = f"inception_{name}_"
        one = self._relu(layer + "1x1", x)
        three = self._relu(layer + "3x3", self._relu(layer + "3x3_reduce", x))
        five = self._relu(layer + "5x5", self._relu(layer + "5x5_reduce", x))
        pool = self._relu(layer + "pool_proj", F.max_pool2d(x, 3, 1, 1))
        return torch.cat([one, three, five, pool], 1)

    def forward(self, face_B3SS: Tensor) -> Tensor:
        """Float RGB in 0..255, (B, 3, S, S), to (B, features)."""
        x = self.layers["conv1_7x7_s2"](face_B3SS - self.mean)
        # ReLU after the pooling gives the same values with a quarter of the work.
        x = self.norm1(F.relu(F.max_pool2d(x, 3, 2, ceil_mode=True)))
        x = self._relu("conv2_3x3", self._relu("conv2_3x3_reduce", x))
        x = F.max_pool2d(self.norm2(x), 3, 2, ceil_mode=True)
        self.auxiliary_maps = []
        for name in self._blocks:
            if name in _POOL_BEFORE:
                x = F.max_pool2d(x, 3, 2, ceil_mode=True)
            x = self._inception(name, x)
            if name in self._tapped and (self.training or torch.is_grad_enabled()):
                self.auxiliary_maps.append(x)
        return x.mean((2, 3))

    def tap(self) -> list[int]:
        """From now on `forward` leaves the maps after inception 4a and 4d in `auxiliary_maps`, for
        auxiliary classifiers; returns their channels. Half the depth has the first alone."""
        self._tapped = tuple(name for name in _AUXILIARY if name in self._blocks)
        channels = []
        for name in self._tapped:
            one, _, three, _, five, pool = _INCEPTION[name]
            channels.append(one + three + five + pool)
        return channels

    def blocks(self) -> list[nn.Module]:
        """conv1, conv2 (two convolutions), then the inception blocks."""
        prefixes = ["conv1_", "conv2_", *(f"inception_{name}_" for name in self._blocks)]
        return [
            nn.ModuleList(layer for name, layer in self.layers.items() if name.startswith(prefix))
            for prefix in prefixes
        ]

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        """Loads BVLC's weights (BGR input, `<layer>.weight`).

        The 1000-way classifiers, also the auxiliary ones (`loss1_*`, `loss2_*`), are left out, and
        with half the depth the later blocks. Raises KeyError or RuntimeError if the weights belong
        to another network.
        """
        unused = ["loss1", "loss2", "loss3"]
        unused += [f"inception_{name}_" for name in _INCEPTION if name not in self._blocks]
        own = {}
        for name, tensor in state.items():
            if not name.startswith(tuple(unused)):
                own[f"layers.{name}"] = tensor.float()
        own["layers.conv1_7x7_s2.weight"] = own["layers.conv1_7x7_s2.weight"].flip(1)  # BGR to RGB
        self.load_state_dict(own)
