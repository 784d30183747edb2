"""EdgeFace-S (George et al., IEEE T-BIOM 2024, arXiv 2307.01838): EdgeNeXt-small (Maaz et al.
2022, arXiv 2206.10589) whose linear layers are products of two smaller ones.

Parameter names are the published file's (timm's `edgenext_small`). Shape letters: B faces, S
side of the face, C channels, H height, W width, N = H W pixels of a map, T heads of attention, E
channels a head, D features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ageray.models.network import Backbone

_CHANNELS = (48, 96, 160, 304)
_BLOCKS = (3, 3, 9, 3)
_KERNELS = (3, 5, 7, 9)
_SCALES = (2, 2, 3, 4)
"""Parts into which the channels of a stage's last block are split; the first stage has no such
block."""
_HEADS = 8
_EXPANSION = 4
_RANK = 0.5
"""gamma of the paper: rank of a linear layer over the smaller of its two sides."""
_EPSILON = 1e-6
_LAYER_SCALE = 1e-6
"""What each residual branch is multiplied by at first."""


class LowRankLinear(nn.Module):
    """y = W2 (W1 x) + b with W1 of gamma min(inputs, outputs) rows (paper, Eq. 2): (..., inputs)
    to (..., outputs)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        rank = max(2, int(min(inputs, outputs) * _RANK))
        self.linear1 = nn.Linear(inputs, rank, bias=False)
        self.linear2 = nn.Linear(rank, outputs)
        for layer in (self.linear1, self.linear2):
            nn.init.trunc_normal_(layer.weight, std=0.02)
        nn.init.zeros_(self.linear2.bias)

    def forward(self, x: Tensor) -> Tensor:
        """One product after the other."""
        product: Tensor = self.linear2(self.linear1(x))
        return product


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each pixel: (B, C, H, W) to the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=_EPSILON)

    def forward(self, input: Tensor) -> Tensor:
        """Each pixel by itself."""
        normal_BHWC: Tensor = super().forward(input.permute(0, 2, 3, 1))
        return normal_BHWC.permute(0, 3, 1, 2)


class Bottleneck(nn.Module):
    """Two linear layers with GELU between them, four times as wide inside: (..., C) to (..., C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = LowRankLinear(channels, _EXPANSION * channels)
        self.fc2 = LowRankLinear(_EXPANSION * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Each pixel by itself."""
        narrow: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return narrow


class ConvBlock(nn.Module):
    """EdgeNeXt's convolution encoder: depthwise convolution, normalisation, bottleneck, around a
    shortcut."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=_EPSILON)
        self.mlp = Bottleneck(channels)
        self.gamma = nn.Parameter(_LAYER_SCALE * torch.ones(channels))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        x_BHWC = self.conv_dw(x_BCHW).permute(0, 2, 3, 1)
        change_BHWC: Tensor = self.gamma * self.mlp(self.norm(x_BHWC))
        return x_BCHW + change_BHWC.permute(0, 3, 1, 2)


class FourierPosition(nn.Module):
    """What is added for a pixel's place: sines and cosines of its row and column as shares of
    the map, projected to C channels."""

    def __init__(self, channels: int, waves: int = 32, temperature: float = 10_000.0) -> None:
        super().__init__()
        self.token_projection = nn.Conv2d(2 * waves, channels, 1)
        index = torch.arange(waves, dtype=torch.float32)
        self.register_buffer(
            "wavelength",
            temperature ** (2 * torch.div(index, 2, rounding_mode="floor") / waves),
            persistent=False,
        )
        self.wavelength: Tensor

    def forward(self, height: int, width: int) -> Tensor:
        """(1, C, height, width)."""
        rows = self._waves(height)[:, None].expand(height, width, -1)
        columns = self._waves(width)[None].expand(height, width, -1)
        places = torch.cat([rows, columns], -1).permute(2, 0, 1)[None]
        projected: Tensor = self.token_projection(places)
        return projected

    def _waves(self, count: int) -> Tensor:
        """Of one axis: (count, waves), sine and cosine in turn."""
        place = torch.arange(1, count + 1, dtype=torch.float32, device=self.wavelength.device)
        angle = 2 * math.pi * place / (count + _EPSILON)
        angles = angle[:, None] / self.wavelength
        return torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], -1).flatten(1)


class CrossCovarianceAttention(nn.Module):
    """Attention between channels (El-Nouby et al. 2021, XCiT): (B, N, C) to the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(_HEADS, 1, 1))
        self.qkv = LowRankLinear(channels, 3 * channels)
        self.proj = LowRankLinear(channels, channels)

    def forward(self, x_BNC: Tensor) -> Tensor:
        """Softmax over the channels of a head of the cosine between channels, applied to the
        values."""
        parts = self.qkv(x_BNC).unflatten(-1, (3, _HEADS, -1)).permute(2, 0, 3, 4, 1)
        query_BTEN, key_BTEN, value_BTEN = parts.unbind(0)
        cosine_BTEE = F.normalize(query_BTEN, dim=-1) @ F.normalize(key_BTEN, dim=-1).transpose(-2, -1)
        weight_BTEE = (cosine_BTEE * self.temperature).softmax(-1)
        mixed_BNC = (weight_BTEE @ value_BTEN).permute(0, 3, 1, 2).flatten(2)
        projected_BNC: Tensor = self.proj(mixed_BNC)
        return projected_BNC


class SplitTransposeBlock(nn.Module):
    """EdgeNeXt's split depthwise transpose attention: groups of channels through a chain of 3x3
    convolutions, attention between channels, bottleneck, around a shortcut."""

    def __init__(self, channels: int, scales: int, position: bool) -> None:
        super().__init__()
        width = math.ceil(channels / scales)
        self.convs = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=1, groups=width) for _ in range(scales - 1)
        )
        self.pos_embd = FourierPosition(channels) if position else None
        self.norm_xca = nn.LayerNorm(channels, eps=_EPSILON)
        self.gamma_xca = nn.Parameter(_LAYER_SCALE * torch.ones(channels))
        self.xca = CrossCovarianceAttention(channels)
        self.norm = nn.LayerNorm(channels, eps=_EPSILON)
        self.mlp = Bottleneck(channels)
        self.gamma = nn.Parameter(_LAYER_SCALE * torch.ones(channels))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        height, width = x_BCHW.shape[-2:]
        groups = x_BCHW.chunk(len(self.convs) + 1, 1)
        outputs: list[Tensor] = []
        for conv, group in zip(self.convs, groups, strict=False):
            outputs.append(conv(group if not outputs else outputs[-1] + group))
        y_BCHW = torch.cat([*outputs, groups[-1]], 1)
        if self.pos_embd is not None:
            y_BCHW = y_BCHW + self.pos_embd(height, width)
        y_BNC = y_BCHW.flatten(2).transpose(1, 2)
        y_BNC = y_BNC + self.gamma_xca * self.xca(self.norm_xca(y_BNC))
        change_BNC: Tensor = self.gamma * self.mlp(self.norm(y_BNC))
        return x_BCHW + change_BNC.transpose(1, 2).reshape(x_BCHW.shape)


class Stage(nn.Module):
    """A halving of the sides (not in the first stage), then its blocks: (B, C, H, W) to (B, C',
    H / 2, W / 2)."""

    def __init__(self, index: int) -> None:
        super().__init__()
        channels, count = _CHANNELS[index], _BLOCKS[index]
        self.downsample = nn.Sequential()
        if index:
            inputs = _CHANNELS[index - 1]
            self.downsample = nn.Sequential(ChannelNorm(inputs), nn.Conv2d(inputs, channels, 2, 2))
        self.blocks = nn.Sequential()
        for place in range(count):
            if index and place == count - 1:
                self.blocks.append(SplitTransposeBlock(channels, _SCALES[index], position=index == 1))
            else:
                self.blocks.append(ConvBlock(channels, _KERNELS[index]))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """One stage."""
        y_BCHW: Tensor = self.blocks(self.downsample(x_BCHW))
        return y_BCHW


class EdgeFace(Backbone):
    """RGB faces in 0..255, (B, 3, S, S), to pooled and normalised features (B, 304), what the
    face embedding is a linear map of.

    Any side from 32 pixels; it was trained at 112 on ArcFace's template, which shows a little
    less of the head than a `similarity` crop.
    """

    name = "edgeface_s"
    least_side = 32

    def __init__(self) -> None:
        super().__init__()
        self.features = _CHANNELS[-1]
        self.stem = nn.Sequential(nn.Conv2d(3, _CHANNELS[0], 4, 4), ChannelNorm(_CHANNELS[0]))
        self.stages = nn.ModuleList(Stage(index) for index in range(len(_CHANNELS)))
        self.norm = nn.LayerNorm(self.features, eps=_EPSILON)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def forward(self, face_B3SS: Tensor) -> Tensor:
        """Float RGB in 0..255 to features (B, D)."""
        x_BCHW = self.stem(face_B3SS / 127.5 - 1)
        for stage in self.stages:
            x_BCHW = stage(x_BCHW)
        features_BD: Tensor = self.norm(x_BCHW.mean((2, 3)))
        return features_BD

    def blocks(self) -> list[nn.Module]:
        """The stem, then the four stages."""
        return [self.stem, *self.stages]

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        """Takes the published weights without their last layer, `head.fc`. Raises RuntimeError
        if they differ."""
        own: dict[str, Tensor] = {}
        for name, tensor in state.items():
            if not name.startswith("head.fc."):
                own[name.replace("head.norm.", "norm.")] = tensor.float()
        self.load_state_dict(own)
