"""GeoAware-SC: maps of several layers of Stable Diffusion and of DINOv2, raw or through a learned post-processor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.backbone.facts import dino_facts
from model.head import AggregationNetwork
from model.head_learning import HeadLearning
from model.method.base import Batch, FeatureMethod
from model.source import MIRRORED, find_dino, layers_source
from utils.geometry import Size, l2_normalise
from utils.noise import seeded

READS = ("layers", "dino")
EPS = 1e-10  # added to the norms


class GeoAware(HeadLearning, FeatureMethod):
    """Without a post-processor ("zero-shot") the cosine of two cells is the mean of both networks' cosines."""

    def __init__(
        self,
        image_size: tuple[int, int],
        taps: Sequence[str],  # layers of Stable Diffusion, in the order of the post-processor's input
        head: AggregationNetwork | None = None,
    ) -> None:
        super().__init__()
        self.image_size, self.taps, self.head = image_size, tuple(taps), head

    @property
    def reads(self) -> tuple[str, ...]:
        return READS + tuple(f"{key}{MIRRORED}" for key in READS if self.mirrors)

    @property
    def trainable(self) -> nn.Module | None:
        return self.head

    def features(self, batch: Batch, seeds: Tensor) -> Tensor:
        return describe_cells(self.head, [batch["layers"][tap] for tap in self.taps], batch["dino"])

    def maps(self, batch: Batch, side: str, mirrored: bool, seeds: Tensor) -> Tensor:
        layers, dino = (batch[f"{side}_{key}{MIRRORED * mirrored}"] for key in READS)
        return join_maps([layers[tap] for tap in self.taps], dino)

    @classmethod
    def build(cls, cfg, device: torch.device, categories: Sequence[str] | None, training: bool, folder=None):
        head = None
        if training or cfg.METHOD.WEIGHTS:
            head = build_head(cfg, [layers_source(cfg).shape[tap][0] for tap in cfg.FEATURES.TAPS])
        method = cls(cfg.DATASET.IMAGE_SIZE, cfg.FEATURES.TAPS, head).to(device)
        if training:
            method.learn_as(cfg.GEOAWARE)
        return method


def build_head(cfg, channels: Sequence[int]) -> AggregationNetwork:
    """A new post-processor for layers of so many channels and DINOv2."""
    with seeded(cfg.SEED):
        return AggregationNetwork((*channels, dino_facts(**find_dino(cfg)).width), cfg.GEOAWARE.WIDTH)


def describe_cells(head: AggregationNetwork | None, layers: Sequence[Tensor], dino: Tensor) -> Tensor:
    """Feature maps (n, C, h, w) on DINOv2's grid of layers (n, c, h', w') and dino (n, D, h, w)."""
    maps = join_maps(layers, dino)
    return head(maps) if head else balance(maps, dino.shape[1])


def join_maps(layers: Sequence[Tensor], dino: Tensor) -> Tensor:
    """(n, sum of channels, h, w), raw, float32, on DINOv2's grid, of maps (n, c, h', w') and dino (n, D, h, w)."""
    return join_on_grid([*layers, dino], dino.shape[-2:])


def join_on_grid(maps: Sequence[Tensor], size: Size) -> Tensor:
    """(n, sum of channels, *size), float32, of maps (n, c, h', w')."""
    resized = [F.interpolate(x.float(), size=size, mode="bilinear", align_corners=False) for x in maps]
    return torch.cat(resized, dim=1)


def balance(maps: Tensor, dino_width: int) -> Tensor:
    """The channels of Stable Diffusion and the last `dino_width`, DINOv2's, each L2-normalised in every cell."""
    layers, dino = maps[:, :-dino_width], maps[:, -dino_width:]
    return torch.cat([l2_normalise(part, dim=1, eps=EPS) for part in (layers, dino)], dim=1)
