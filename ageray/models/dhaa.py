"""`dhaa`: Deep Hybrid-Aligned Architecture (Tan et al., IJCAI 2019): global, local and global-local branches of three sub-networks each.

Sub-networks are named as in the paper's Figure 6: G-1 to G-3, L-1 to L-3, GL-1 to GL-3. Shape letters: B faces, S side of the aligned face, K
age bins, A auxiliary classifiers, T sub-networks of a branch, C channels, H and W sides of a feature map, D features.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ageray.experiment.model import Dhaa as Config
from ageray.models.network import AgeNetwork, Batch, age_head, head_output, no_imagenet, scaled
from ageray.models.regions import REGIONS, RegionPooling

BRANCHES = {"global": "G", "local": "L", "global_local": "GL"}
"""The branches in the order of the paper's concatenation, and the letters of their sub-networks."""
FINAL = "DHAA"
"""Figure 6's name of the last classifier."""
_STRIDE = 4  # of the shared features C^B1
_WHOLE = "G-1"  # "we simply use the entire features of C^B1 as the first global feature"
_CHANNELS = (64, 128, 256, 512)
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _subnetworks(branch: str) -> list[str]:
    return [f"{BRANCHES[branch]}-{k}" for k in (1, 2, 3)]


def _parents(name: str) -> tuple[str, str]:
    """The global and the local sub-network whose second blocks feed a global-local one."""
    return name.replace("GL", "G"), name.replace("GL", "L")


def _layer(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """A residual block of the paper: two residual units. Parameters are named as those of torchvision's `layer1` to `layer4`."""
    from torchvision.models.resnet import (
        BasicBlock,
    )  # here: the import takes seconds, and other networks do without

    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    return nn.Sequential(BasicBlock(inputs, outputs, stride, shortcut), BasicBlock(outputs, outputs))


class Trunk(nn.Module):
    """What all branches share: ResNet-18's stem and its first residual block C^B1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.layer1 = _layer(channels, channels, 1)
        self.register_buffer("mean", 255 * torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(_STD).view(1, 3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, face_B3SS: Tensor) -> Tensor:
        """Float RGB in 0..255, (B, 3, S, S), to (B, C, S / 4, S / 4), the quotient rounded up."""
        x = F.relu(self.bn1(self.conv1((face_B3SS - self.mean) / self.std)))
        features: Tensor = self.layer1(F.max_pool2d(x, 3, 2, 1))
        return features


class Blocks(nn.Module):
    """ResNet-18's blocks: the shared trunk, region pooling, and each sub-network's own second, third and fourth block.

    Only what the chosen branches need is there: with `global_local` alone the global and local sub-networks end after their second block.
    """

    name = "resnet18"  # whose published weights fit

    def __init__(self, config: Config) -> None:
        super().__init__()
        one, two, three, four = (scaled(channels, config.width) for channels in _CHANNELS)
        self.names = [
            name for branch in BRANCHES if branch in config.branches for name in _subnetworks(branch)
        ]
        second = sorted(
            {
                parent
                for name in self.names
                for parent in (_parents(name) if name.startswith("GL") else [name])
            }
        )
        self.trunk = Trunk(one)
        self.pooling = RegionPooling([name for name in second if name in REGIONS], config.pooling, _STRIDE)
        self.layer2 = nn.ModuleDict({name: _layer(one, two, 2) for name in second})
        self.layer3 = nn.ModuleDict(
            {name: _layer(2 * two if name.startswith("GL") else two, three, 2) for name in self.names}
        )
        self.layer4 = nn.ModuleDict({name: _layer(three, four, 2) for name in self.names})
        self.channels = four
        self._region_size = config.region_size
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, face_B3SS: Tensor, points_B52: Tensor) -> dict[str, Tensor]:
        """Faces and their points, in pixels of the face, to each sub-network's last feature map (B, C, H, W)."""
        shared_BCHW = self.trunk(face_B3SS)
        # seven thirty-seconds of the face's side, 56 of 256, rounded half up
        size = self._region_size or (7 * face_B3SS.shape[-1] + 16) // 32
        regions = {_WHOLE: shared_BCHW, **self.pooling(shared_BCHW, points_B52, size)}
        second = {name: layer(regions[name]) for name, layer in self.layer2.items()}
        return {
            name: self.layer4[name](layer(self._third_input(name, second)))
            for name, layer in self.layer3.items()
        }

    @staticmethod
    def _third_input(name: str, second: dict[str, Tensor]) -> Tensor:
        """A sub-network's second block; for a global-local one both parents', the global resized to the local where they differ (k = 1)."""
        if not name.startswith("GL"):
            return second[name]
        whole, part = (second[parent] for parent in _parents(name))
        if whole.shape[-2:] != part.shape[-2:]:
            whole = F.interpolate(whole, part.shape[-2:], mode="bilinear", align_corners=False)
        return torch.cat([whole, part], 1)

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        """Takes a state dict of torchvision's resnet18: stem and layer1 into the trunk, layer2 to layer4 into every sub-network.

        A global-local third block has twice the input channels: its first kernels are halved and repeated, so that equal parents give what
        one would. The 1000-way classifier is left out. Raises RuntimeError if the state is another network's.
        """
        parts: dict[str, dict[str, Tensor]] = {"trunk": {}, "layer2": {}, "layer3": {}, "layer4": {}}
        for name, tensor in state.items():
            part, _, rest = name.partition(".")
            if part in parts:
                parts[part][rest] = tensor.float()
            elif part != "fc":
                parts["trunk"][name] = tensor.float()
        self.trunk.load_state_dict(parts["trunk"])
        for part, layers in (("layer2", self.layer2), ("layer3", self.layer3), ("layer4", self.layer4)):
            for name, layer in layers.items():
                twice = part == "layer3" and name.startswith("GL")
                layer.load_state_dict(_repeated(parts[part]) if twice else parts[part])


def _repeated(layer3: dict[str, Tensor]) -> dict[str, Tensor]:
    """The block's weights for two inputs one after the other: kernels that read the input, halved and repeated."""
    doubled = {
        name: torch.cat([layer3[name], layer3[name]], 1) / 2
        for name in ("0.conv1.weight", "0.downsample.0.weight")
    }
    return {**layer3, **doubled}


class Tail(nn.Module):
    """A sub-network's end: a convolution to few channels, global average pooling, a fully connected layer (section 2.3).

    The paper says neither the convolution's size nor what follows it: 1x1, then batch normalisation and ReLU, as everywhere in the network.
    """

    def __init__(self, channels: int, features: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, features, 1, bias=False)
        self.norm = nn.BatchNorm2d(features)
        self.linear = nn.Linear(features, features)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The last block's map (B, C, H, W) to z (B, D)."""
        z_BD: Tensor = self.linear(F.relu(self.norm(self.conv(x_BCHW))).mean((2, 3)))
        return z_BD


class RecurrentFusion(nn.Module):
    """h_k = LSTM(z_k, h_k-1) over a branch's sub-networks in order, h = sum_k h_k (Eq. 2, 3): (B, T, D) to (B, D)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, features, batch_first=True)
        for name, parameter in self.lstm.named_parameters():
            for gate, part in zip(("input", "forget", "cell", "output"), parameter.chunk(4), strict=True):
                if name.startswith("bias"):
                    nn.init.constant_(
                        part, float(gate == "forget" and name == "bias_ih_l0")
                    )  # the forget gate starts open
                else:
                    (nn.init.xavier_uniform_ if name.startswith("weight_ih") else nn.init.orthogonal_)(part)

    def forward(self, z_BTD: Tensor) -> Tensor:
        """Features of the sub-networks to the branch's."""
        hidden_BTD: Tensor = self.lstm(z_BTD)[0]
        return hidden_BTD.sum(1)


class FcFusion(nn.Module):
    """Figure 5's 'FC Fus.': one fully connected layer (and ReLU) on a branch's concatenated features, (B, T, D) to (B, D)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * features, features)
        nn.init.kaiming_normal_(self.linear.weight, nonlinearity="relu")
        nn.init.zeros_(self.linear.bias)

    def forward(self, z_BTD: Tensor) -> Tensor:
        """Features of the sub-networks to the branch's."""
        return F.relu(self.linear(z_BTD.flatten(1)))


class Dhaa(AgeNetwork):
    """Yields `logits` (B, K) (or `ordinal_logits` (B, K - 1)) and `embedding`, the fused branches one after the other, (B, branches x D).

    In training also `aux_logits` (B, A, K) (or `aux_ordinal_logits`), a classifier for each sub-network in the order of `subnetworks`, unless
    `subnetwork_losses` is off.
    """

    reads_points = True

    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.weights == "imagenet" and config.width != 1:
            raise no_imagenet(
                f"dhaa with model.width={config.width:g}", "set model.width=1, or model.weights=none"
            )
        self._name = head_output(config)
        self.outputs = frozenset(
            {self._name, "embedding"} | ({f"aux_{self._name}"} if config.subnetwork_losses else set())
        )
        self.backbone = Blocks(config)
        self.subnetworks = self.backbone.names
        self.tails = nn.ModuleDict(
            {name: Tail(self.backbone.channels, config.features) for name in self.subnetworks}
        )
        self._branches = [branch for branch in BRANCHES if branch in config.branches]
        fusion = RecurrentFusion if config.fusion == "lstm" else FcFusion
        self.fusions = nn.ModuleDict({branch: fusion(config.features) for branch in self._branches})
        self.dropout = nn.Dropout(config.dropout)
        self.head = age_head(config, len(self._branches) * config.features)
        with_own = self.subnetworks if config.subnetwork_losses else []
        self.subnetwork_heads = nn.ModuleDict({name: age_head(config, config.features) for name in with_own})
        self.classifier_names = (*with_own, FINAL) if with_own else ()
        if config.weights == "imagenet":
            import torchvision

            self.load_backbone(torchvision.models.resnet18(weights="IMAGENET1K_V1").state_dict())

    def forward(self, batch: Batch) -> Batch:
        """Faces and points to logits and embedding."""
        z_BD = self._features(batch)
        embedding = self._fused(z_BD)
        outputs = {self._name: self.head(self.dropout(embedding)), "embedding": embedding}
        if self.training and self.subnetwork_heads:
            outputs[f"aux_{self._name}"] = torch.stack(list(self._own_logits(z_BD).values()), 1)
        return outputs

    def classifiers(self, batch: Batch) -> dict[str, Tensor]:
        """What every classifier says, in any mode: `logits` (or `ordinal_logits`) of G-1 to GL-3 and, last, of DHAA; the bars of Figure 6."""
        z_BD = self._features(batch)
        return {**self._own_logits(z_BD), FINAL: self.head(self.dropout(self._fused(z_BD)))}

    def _features(self, batch: Batch) -> dict[str, Tensor]:
        maps = self.backbone(batch["face"], batch["points"])
        return {name: tail(maps[name]) for name, tail in self.tails.items()}

    def _fused(self, z_BD: dict[str, Tensor]) -> Tensor:
        branches = [
            self.fusions[branch](torch.stack([z_BD[name] for name in _subnetworks(branch)], 1))
            for branch in self._branches
        ]
        return torch.cat(branches, 1)

    def _own_logits(self, z_BD: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: head(z_BD[name]) for name, head in self.subnetwork_heads.items()}

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """Those of everything behind the residual blocks: tails, fusions, classifiers."""
        for part in (self.tails, self.fusions, self.head, self.subnetwork_heads):
            yield from part.parameters()

    def get_backbone(self) -> nn.Module:
        """The residual blocks of trunk and sub-networks."""
        return self.backbone

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        """A state dict of torchvision's resnet18; see `Blocks.load_backbone`."""
        self.backbone.load_backbone(state)
