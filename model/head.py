"""GeoAware-SC's post-processor: the raw maps of several layers in, one map of descriptors out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GROUPS = 32  # of a GroupNorm, as far as they divide its channels


class AggregationNetwork(nn.Module):
    """A bottleneck block for each of the maps; their outputs are summed with weights softmax(mixing_weights).

    Names and shapes of the tensors are those of the authors' files. `logit_scale` and `self_logit_scale` are learned
    with the objective and not used here.
    """

    def __init__(
        self,
        feature_dims: Sequence[int] = (640, 1280, 1280, 768),  # channels of s3, s4, s5, DINOv2
        width: int = 768,  # channels of a descriptor
    ) -> None:
        super().__init__()
        self.feature_dims, self.width = tuple(feature_dims), width
        self.bottleneck_layers = nn.ModuleList(nn.Sequential(Bottleneck(dim, width)) for dim in feature_dims)
        self.mixing_weights = nn.Parameter(torch.ones(len(self.feature_dims)))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # ln tau of the contrastive objective
        self.self_logit_scale = nn.Parameter(torch.tensor(math.log(10.0)))  # of no objective; the files hold it

    def forward(self, features: Tensor) -> Tensor:
        """Descriptors (n, width, h, w), >= 0 and not normalised, of raw maps (n, sum of feature_dims, h, w)."""
        maps = features.split(self.feature_dims, dim=1)
        mixing = self.mixing_weights.softmax(dim=0)
        return sum(weight * layer(x) for weight, layer, x in zip(mixing, self.bottleneck_layers, maps, strict=True))


class Bottleneck(nn.Module):
    """ReLU(1x1, 3x3, 1x1 convolutions + shortcut), every convolution followed by GroupNorm."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        mid = width // 4
        self.shortcut = nn.Identity() if channels == width else NormedConv(channels, width, 1)
        self.conv1 = NormedConv(channels, mid, 1)
        self.conv2 = NormedConv(mid, mid, 3)
        self.conv3 = NormedConv(mid, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        main = self.conv3(F.relu(self.conv2(F.relu(self.conv1(x)))))
        return F.relu(main + self.shortcut(x))


class NormedConv(nn.Conv2d):
    """A convolution without bias, and its GroupNorm."""

    def __init__(self, channels: int, width: int, kernel: int) -> None:
        super().__init__(channels, width, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.GroupNorm(math.gcd(GROUPS, width), width)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))
