"""`dhaa`: Deep Hybrid-Aligned Architecture (Tan et al., IJCAI 2019).

It has a global, a local and a global-local branch of three sub-networks each. They are named as in
the paper's Figure 6: G-1 to G-3, L-1 to L-3, GL-1 to GL-3. docs/dhaa.md lists what we decided where
the paper is silent.

Shape letters: B faces, S side of the aligned face, K age bins, A auxiliary classifiers, T
sub-networks of a branch, C channels, H and W sides of a feature map, D features, G = 4 D numbers
of the gates.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ageray.experiment.model import Dhaa as Config
from ageray.models.network import CLASSIFIER, AgeNetwork, Batch, age_head, head_output, no_imagenet, scaled
from ageray.models.regions import REGIONS, RegionPooling

BRANCHES = {"global": "G", "local": "L", "global_local": "GL"}
"""The branches in the paper's order of concatenation, with the letters of their sub-networks."""
FINAL = "DHAA"
"""The last classifier's name in Figure 6."""
_STRIDE = 4  # of the shared features C^B1, in pixels
_WHOLE = "G-1"  # "we simply use the entire features of C^B1 as the first global feature"
_CHANNELS = (64, 128, 256, 512)
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _subnetworks(branch: str) -> list[str]:
    return [f"{BRANCHES[branch]}-{k}" for k in (1, 2, 3)]


def _parents(name: str) -> tuple[str, str]:
    """The global and the local sub-network whose second blocks a global-local one reads."""
    return name.replace("GL", "G"), name.replace("GL", "L")


def _layer(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """A residual block of the paper: two residual units.

    Parameters have the names of torchvision's `layer1` to `layer4`.
    """
    # Imported here, because it takes seconds and other networks do not need it.
    from torchvision.models.resnet import BasicBlock

    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    return nn.Sequential(BasicBlock(inputs, outputs, stride, shortcut), BasicBlock(outputs, outputs))


class Trunk(nn.Module):
    """The part that all branches share: ResNet-18's stem and first residual block C^B1."""

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
        """Float RGB in 0..255, (B, 3, S, S), to (B, C, S / 4, S / 4), rounded up."""
        x = F.relu(self.bn1(self.conv1((face_B3SS - self.mean) / self.std)))
        features: Tensor = self.layer1(F.max_pool2d(x, 3, 2, 1))
        return features


class Blocks(nn.Module):
    """ResNet-18's blocks: the shared trunk, region pooling, and three blocks of each sub-network.

    It has only the blocks that the configured branches need. With `global_local` alone the global
    and local sub-networks end after their second block.
    """

    name = "resnet18"  # the network whose published weights fit

    def __init__(self, config: Config) -> None:
        super().__init__()
        one, two, three, four = (scaled(channels, config.width) for channels in _CHANNELS)
        self.names: list[str] = []
        for branch in BRANCHES:
            if branch in config.branches:
                self.names += _subnetworks(branch)
        second = self._second_blocks()
        self.trunk = Trunk(one)
        self.pooling = RegionPooling([name for name in second if name in REGIONS], config.pooling, _STRIDE)
        self.layer2 = nn.ModuleDict({name: _layer(one, two, 2) for name in second})
        self.layer3 = nn.ModuleDict()
        for name in self.names:
            inputs = 2 * two if name.startswith("GL") else two
            self.layer3[name] = _layer(inputs, three, 2)
        self.layer4 = nn.ModuleDict({name: _layer(three, four, 2) for name in self.names})
        self.channels = four
        self._region_size = config.region_size
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def _second_blocks(self) -> list[str]:
        """The global and local sub-networks that have a second block, sorted by name."""
        names: set[str] = set()
        for name in self.names:
            names |= set(_parents(name)) if name.startswith("GL") else {name}
        return sorted(names)

    def forward(self, face_B3SS: Tensor, points_B52: Tensor) -> dict[str, Tensor]:
        """Each sub-network's last feature map (B, C, H, W), of faces and their points in pixels."""
        shared_BCHW = self.trunk(face_B3SS)
        # 7/32 of the face's side, which is 56 for 256, rounded half up
        size = self._region_size or (7 * face_B3SS.shape[-1] + 16) // 32
        regions = {_WHOLE: shared_BCHW, **self.pooling(shared_BCHW, points_B52, size)}
        second = {name: layer(regions[name]) for name, layer in self.layer2.items()}
        maps = {}
        for name, layer in self.layer3.items():
            maps[name] = self.layer4[name](layer(self._third_input(name, second)))
        return maps

    @staticmethod
    def _third_input(name: str, second: dict[str, Tensor]) -> Tensor:
        """The map of a sub-network's second block; for a global-local one those of both parents.

        The global map is resized to the local one if their sides differ (k = 1).
        """
        if not name.startswith("GL"):
            return second[name]
        whole, part = (second[parent] for parent in _parents(name))
        if whole.shape[-2:] != part.shape[-2:]:
            whole = F.interpolate(whole, part.shape[-2:], mode="bilinear", align_corners=False)
        return torch.cat([whole, part], 1)

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        """Loads a state dict of torchvision's resnet18.

        The trunk gets stem and layer1, every sub-network gets layer2 to layer4. The third block of
        a global-local sub-network has twice the input channels. Its first kernels are halved and
        repeated, so that two equal parents give the output of one. The 1000-way classifier is left
        out. Raises RuntimeError if the state belongs to another network.
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
                weights = parts[part]
                if part == "layer3" and name.startswith("GL"):
                    weights = _repeated(weights)
                layer.load_state_dict(weights)


def _repeated(layer3: dict[str, Tensor]) -> dict[str, Tensor]:
    """The block's weights for two concatenated inputs.

    The kernels that read the input are halved and repeated.
    """
    weights = dict(layer3)
    for name in ("0.conv1.weight", "0.downsample.0.weight"):
        weights[name] = torch.cat([layer3[name], layer3[name]], 1) / 2
    return weights


class Tail(nn.Module):
    """The end of a sub-network (section 2.3).

    A convolution to few channels, global average pooling, a fully connected layer. The paper gives
    neither the convolution's size nor what follows it. Here it is 1x1, with batch normalisation and
    ReLU as everywhere in the network.
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
    """h = sum_k h_k with h_k = LSTM(z_k, h_k-1) over a branch's sub-networks in order (Eq. 2, 3).

    (B, T, D) to (B, D).
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, features, batch_first=True)
        # its own parameters, for torch.compile, which refuses to look into an LSTM
        self._parts = tuple(self.lstm.parameters())
        for name, parameter in self.lstm.named_parameters():
            for gate, part in zip(("input", "forget", "cell", "output"), parameter.chunk(4), strict=True):
                if name.startswith("weight_ih"):
                    nn.init.xavier_uniform_(part)
                elif name.startswith("weight_hh"):
                    nn.init.orthogonal_(part)
                else:
                    # The forget gate starts open.
                    nn.init.constant_(part, float(gate == "forget" and name == "bias_ih_l0"))

    def forward(self, z_BTD: Tensor) -> Tensor:
        """Features of the sub-networks to the branch's."""
        if torch.compiler.is_dynamo_compiling():  # which has no LSTM
            return self.unrolled(z_BTD)
        hidden_BTD: Tensor = self.lstm(z_BTD)[0]
        return hidden_BTD.sum(1)

    def unrolled(self, z_BTD: Tensor) -> Tensor:
        """`forward` with the LSTM's steps written out. The cell is float32 also under autocast."""
        input_weight_GD, hidden_weight_GD, input_bias_G, hidden_bias_G = self._parts
        sum_BD = cell_BD = hidden_BD = torch.zeros_like(z_BTD[:, 0], dtype=torch.float32)
        inputs_BTG = F.linear(z_BTD, input_weight_GD, input_bias_G)
        for inputs_BG in inputs_BTG.unbind(1):
            gates_BG = inputs_BG + F.linear(hidden_BD, hidden_weight_GD, hidden_bias_G)
            input_BD, forget_BD, new_BD, output_BD = gates_BG.float().chunk(4, -1)
            cell_BD = forget_BD.sigmoid() * cell_BD + input_BD.sigmoid() * new_BD.tanh()
            hidden_BD = output_BD.sigmoid() * cell_BD.tanh()
            sum_BD = sum_BD + hidden_BD
        return sum_BD.to(inputs_BTG.dtype)


class FcFusion(nn.Module):
    """Figure 5's 'FC Fus.': (B, T, D) to (B, D).

    A fully connected layer and ReLU on a branch's concatenated features.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * features, features)
        nn.init.kaiming_normal_(self.linear.weight, nonlinearity="relu")
        nn.init.zeros_(self.linear.bias)

    def forward(self, z_BTD: Tensor) -> Tensor:
        """Features of the sub-networks to the branch's."""
        return F.relu(self.linear(z_BTD.flatten(1)))


class Dhaa(AgeNetwork):
    """Yields `logits` (B, K) (or `ordinal_logits` (B, K - 1)) and `embedding` (B, branches x D).

    The embedding is the concatenation of the fused branches. In training it also yields
    `aux_logits` (B, A, K) (or `aux_ordinal_logits`), unless `subnetwork_losses` is off. They come
    from a classifier for each sub-network, in the order of `subnetworks`.
    """

    reads_points = True

    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.weights == "imagenet" and config.width != 1:
            raise no_imagenet(
                f"dhaa with model.width={config.width:g}", "set model.width=1, or model.weights=none"
            )
        self._name = head_output(config)
        self.outputs = frozenset({self._name, "embedding"})
        if config.subnetwork_losses:
            self.outputs |= {f"aux_{self._name}"}
        self.backbone = Blocks(config)
        self.subnetworks = self.backbone.names
        self.tails = nn.ModuleDict()
        for name in self.subnetworks:
            self.tails[name] = Tail(self.backbone.channels, config.features)
        self._branches = [branch for branch in BRANCHES if branch in config.branches]
        fusion = RecurrentFusion if config.fusion == "lstm" else FcFusion
        self.fusions = nn.ModuleDict({branch: fusion(config.features) for branch in self._branches})
        self.dropout = nn.Dropout(config.dropout)
        self.head = age_head(config, len(self._branches) * config.features)
        self.subnetwork_heads = nn.ModuleDict()
        if config.subnetwork_losses:
            for name in self.subnetworks:
                self.subnetwork_heads[name] = age_head(config, config.features)
            self.classifier_names = (*self.subnetworks, FINAL)
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
        """The output of every classifier, in any mode: the bars of Figure 6.

        It has `logits` (or `ordinal_logits`) of G-1 to GL-3 and, last, of DHAA.
        """
        z_BD = self._features(batch)
        return {**self._own_logits(z_BD), FINAL: self.head(self.dropout(self._fused(z_BD)))}

    def detailed(self, batch: Batch) -> Batch:
        """Logits, embedding and the output of every classifier, with one pass of the blocks."""
        z_BD = self._features(batch)
        embedding = self._fused(z_BD)
        logits = self.head(self.dropout(embedding))
        outputs = {self._name: logits, "embedding": embedding}
        if self.classifier_names:
            outputs[CLASSIFIER + FINAL] = logits
            for name, own in self._own_logits(z_BD).items():
                outputs[CLASSIFIER + name] = own
        return outputs

    def _features(self, batch: Batch) -> dict[str, Tensor]:
        maps = self.backbone(batch["face"], batch["points"])
        return {name: tail(maps[name]) for name, tail in self.tails.items()}

    def _fused(self, z_BD: dict[str, Tensor]) -> Tensor:
        branches = []
        for branch in self._branches:
            z_BTD = torch.stack([z_BD[name] for name in _subnetworks(branch)], 1)
            branches.append(self.fusions[branch](z_BTD))
        return torch.cat(branches, 1)

    def _own_logits(self, z_BD: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: head(z_BD[name]) for name, head in self.subnetwork_heads.items()}

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters behind the residual blocks: tails, fusions, classifiers."""
        for part in (self.tails, self.fusions, self.head, self.subnetwork_heads):
            yield from part.parameters()

    def get_backbone(self) -> nn.Module:
        """The residual blocks of the trunk and the sub-networks."""
        return self.backbone

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        """Loads a state dict of torchvision's resnet18; see `Blocks.load_backbone`."""
        self.backbone.load_backbone(state)
