"""`residual_cnn`: the residual networks of the neighborhood paper (Kwak et al., Table 1).

They have 18 or 34 layers.

Shape letters: B faces, S side of the face, C channels, H height, W width, D features, K age bins.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ageray import experiment
from ageray.models.baseline import Classifier
from ageray.models.network import Backbone, no_imagenet, scaled

_UNITS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
"""Residual units in Conv2_x to Conv5_x."""
_CHANNELS = (64, 128, 256, 512)


class ResidualUnit(nn.Module):
    """A residual unit with full pre-activation (He et al. 2016, the paper's [4]).

    It takes (B, C, H, W) to (B, C', H', W'):

        a = relu(bn(x)),  y = shortcut + conv(relu(bn(conv(a))))

    The second convolution has the stride, which Table 1 writes as S2. The shortcut is x. If the
    shape changes, it is a 1x1 convolution of a with the same stride. The first unit of a network
    has a = x, because its input is activated already (He et al. 2016, section 4).
    """

    def __init__(self, inputs: int, outputs: int, stride: int, first: bool) -> None:
        super().__init__()
        self.norm1 = None if first else nn.BatchNorm2d(inputs)
        self.conv1 = _conv(inputs, outputs, 3)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv(outputs, outputs, 3, stride)
        self.shortcut: nn.Conv2d | None = None
        if stride > 1 or inputs != outputs:
            self.shortcut = _conv(inputs, outputs, 1, stride)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H', W')."""
        active_BCHW = x_BCHW if self.norm1 is None else F.relu(self.norm1(x_BCHW))
        shortcut_BCHW = x_BCHW if self.shortcut is None else self.shortcut(active_BCHW)
        residual_BCHW: Tensor = self.conv2(F.relu(self.norm2(self.conv1(active_BCHW))))
        return residual_BCHW + shortcut_BCHW


class ResidualBackbone(Backbone):
    """The network without its classifier: RGB faces in 0..255, (B, 3, S, S), to features (B, D).

    S is at least 32. D is 512 times the width (`scaled`). For the paper's 224 pixels the sides are
    224 after the first convolution (3x3, stride 1), 112 after max pooling (3x3, stride 2), then 56,
    28, 14 and 7, because the first unit of each stage has stride 2. (Table 1 gives 112 for conv1
    itself, but the text contradicts it.) Every 3x3 convolution has a batch normalisation; in
    pre-activation order the last one acts before the pooling.
    """

    name = "residual_cnn"
    least_side = 32

    def __init__(self, depth: int, width: float = 1.0) -> None:
        super().__init__()
        channels = [scaled(count, width) for count in _CHANNELS]
        self.features = channels[-1]
        self.conv1 = _conv(3, channels[0], 3)
        self.norm1 = nn.BatchNorm2d(channels[0])
        self.stages = nn.ModuleList()
        inputs = channels[0]
        for stage, (outputs, units) in enumerate(zip(channels, _UNITS[depth], strict=True)):
            layers = [ResidualUnit(inputs, outputs, stride=2, first=stage == 0)]
            for _ in range(units - 1):
                layers.append(ResidualUnit(outputs, outputs, 1, first=False))
            self.stages.append(nn.Sequential(*layers))
            inputs = outputs
        self.norm2 = nn.BatchNorm2d(self.features)

    def forward(self, face_B3SS: Tensor) -> Tensor:
        """Features (B, D) of float RGB in 0..255, scaled to (x - 127.5) / 128 (section 4.1)."""
        x_BCHW = F.relu(self.norm1(self.conv1((face_B3SS - 127.5) / 128)))
        x_BCHW = F.max_pool2d(x_BCHW, 3, 2, 1)
        for stage in self.stages:
            x_BCHW = stage(x_BCHW)
        return F.relu(self.norm2(x_BCHW)).mean((2, 3))

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        """Loads a state dict of this class; no weights are published.

        Raises RuntimeError if it belongs to another network.
        """
        self.load_state_dict(state)


class ResidualCnn(Classifier):
    """Residual network, global average pooling, dropout, one linear classifier (section 4.2).

    Yields `logits` (B, K) (or `ordinal_logits` (B, K - 1)) and `embedding` (B, D), the pooled
    features. The paper initialises by He et al. 2015 ([20]). Here that holds for convolutions; the
    classifier starts near zero, as in the other networks.
    """

    def __init__(self, config: experiment.model.ResidualCnn) -> None:
        if config.weights == "imagenet":
            raise no_imagenet(
                "residual_cnn", "name a safetensors file of your own, or none (the paper trains from scratch)"
            )
        super().__init__(config, ResidualBackbone(config.depth, config.width))


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias, which the next normalisation would remove.

    Its weights start by He et al. 2015 (the paper's [20]).
    """
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return layer
