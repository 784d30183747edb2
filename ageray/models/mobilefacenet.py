"""MobileFaceNet (Chen et al. 2018, arXiv 1804.07573, Table 1) as Sirius-AI published it: batch
normalisation folded into the biases, PReLU, TensorFlow's SAME padding, a pointwise convolution
after the first depthwise one.

Shape letters: B faces, S side of the face, C channels, H height, W width, D features.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ageray.models.mobilenet import SameConv2d
from ageray.models.network import Backbone

_BLOCKS = ((64, 2, 5, 2), (128, 4, 1, 2), (128, 2, 6, 1), (128, 4, 1, 2), (128, 2, 2, 1))
"""Bottlenecks of Table 1: output channels, expansion, how many, stride of the first."""
_POOLED = 7
"""Side of the last map of a 112-pixel face."""


class Layer(nn.Module):
    """A convolution and, unless linear, PReLU with a slope for each channel: (B, C, H, W) to (B,
    C', H', W')."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        depthwise: bool = False,
        linear: bool = False,
    ) -> None:
        super().__init__()
        groups = inputs if depthwise else 1
        kind = SameConv2d if kernel == 3 else nn.Conv2d
        self.conv = kind(inputs, outputs, kernel, stride, groups=groups)
        self.act = None if linear else nn.PReLU(outputs)
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")
        assert self.conv.bias is not None
        nn.init.zeros_(self.conv.bias)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """One layer."""
        y_BCHW: Tensor = self.conv(x_BCHW)
        return y_BCHW if self.act is None else self.act(y_BCHW)


class InvertedBlock(nn.Module):
    """Expansion, depthwise convolution, linear projection; a shortcut where the shape stays."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.a = Layer(inputs, inner, 1)
        self.b = Layer(inner, inner, 3, stride, depthwise=True)
        self.c = Layer(inner, outputs, 1, linear=True)
        self._shortcut = stride == 1 and inputs == outputs

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H / stride, W / stride)."""
        y_BCHW: Tensor = self.c(self.b(self.a(x_BCHW)))
        return x_BCHW + y_BCHW if self._shortcut else y_BCHW


class MobileFaceNet(Backbone):
    """RGB faces in 0..255, (B, 3, S, S), to the features of the global depthwise convolution (B,
    512), what the face embedding is a linear map of.

    Any side from 32 pixels; it was trained at 112. Of another side, the 7x7 weights of the
    global convolution are interpolated to the side n of the last map and multiplied by 49 / n^2.
    """

    name = "mobilefacenet"
    least_side = 32
    float32_layers = ("gd",)

    def __init__(self) -> None:
        super().__init__()
        self.features = 512
        self.c1 = Layer(3, 64, 3, stride=2)
        self.d1 = Layer(64, 64, 3, depthwise=True)
        self.p1 = Layer(64, 64, 1, linear=True)
        self.bottlenecks = nn.ModuleList()
        channels = 64
        for outputs, expansion, count, stride in _BLOCKS:
            for place in range(count):
                self.bottlenecks.append(InvertedBlock(channels, outputs, expansion, 1 if place else stride))
                channels = outputs
        self.c7 = Layer(channels, self.features, 1)
        self.gd = nn.Conv2d(self.features, self.features, _POOLED, groups=self.features)

    def forward(self, face_B3SS: Tensor) -> Tensor:
        """Float RGB in 0..255 to features (B, D)."""
        x_BCHW = self.p1(self.d1(self.c1((face_B3SS - 127.5) / 128)))
        for block in self.bottlenecks:
            x_BCHW = block(x_BCHW)
        x_BCHW = self.c7(x_BCHW)
        side = x_BCHW.shape[-1]
        weight = self.gd.weight
        if side != _POOLED:
            weight = F.interpolate(weight, (side, side), mode="bilinear") * (_POOLED**2 / side**2)
        return F.conv2d(x_BCHW, weight, self.gd.bias, groups=self.features).flatten(1)

    def blocks(self) -> list[nn.Module]:
        """The first convolution, the separable one, then the fifteen bottlenecks."""
        return [self.c1, nn.ModuleList([self.d1, self.p1]), *self.bottlenecks]

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        """Takes the published weights without the two last layers, `head.0` and `head.1`. Raises
        RuntimeError if they differ."""
        own: dict[str, Tensor] = {}
        for name, tensor in state.items():
            if not name.startswith("head."):
                own[name.replace("blocks.", "bottlenecks.")] = tensor.float()
        self.load_state_dict(own)
