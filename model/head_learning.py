"""How a post-processor learns, whatever maps it is put on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from loss.pose_variants import PoseVariants
from model.head import AggregationNetwork
from model.method.base import Batch
from model.source import MIRRORED
from utils.noise import derive_seeds, drop_elements

DROPOUT = 2_000_000  # number of the first draw of dropout among an image's; other draws count from 0


class HeadLearning:
    """Part of a method with a `head`, an `objective` and an `image_size`, whose `maps` the head turns to descriptors.

    `learn_as` says how, for training; then `reads_mirrored` names what else is read.
    """

    head: AggregationNetwork | None
    objective: nn.Module | None
    image_size: tuple[int, int]
    variants: PoseVariants | None = None

    def maps(self, batch: Batch, side: str, mirrored: bool, seeds: Tensor) -> Tensor:
        """What the head reads of one side of a pair batch, or of its mirror images: (B, C, h, w), raw."""
        raise NotImplementedError

    def learn_as(self, section) -> None:
        """As config section GEOAWARE says."""
        self.dropout, self.weight_decay = section.DROPOUT, section.WEIGHT_DECAY
        self.variants = PoseVariants(
            sparse=section.SPARSE,
            dense=section.DENSE,
            noise=section.NOISE,
            double=section.DOUBLE,
            alone=section.SELF,
            single=section.SINGLE,
        )

    @property
    def mirrors(self) -> bool:
        """Whether mirror images are read."""
        return self.variants is not None and len(self.variants.needs) > 2

    def build_optimizer(self, lr: float, linear_lr_scale: float) -> torch.optim.Optimizer:
        """Weight decay on everything, norms and scalars too."""
        return torch.optim.AdamW(self.trainable.parameters(), lr=lr, weight_decay=self.weight_decay)

    def loss(self, batch: Batch, seeds: Tensor) -> Tensor:
        raw, draws = [], []
        for name in self.variants.needs:
            side, mirrored = name.removesuffix(MIRRORED), name.endswith(MIRRORED)
            side_seeds = seeds[:, ("src", "trg").index(side)]
            raw.append(self.maps(batch, side, mirrored, side_seeds))
            draws.append(derive_seeds(side_seeds, DROPOUT + mirrored))
        descriptors = self.head(drop_elements(torch.cat(raw), self.dropout, torch.cat(draws)))
        described = dict(zip(self.variants.needs, descriptors.chunk(len(raw)), strict=True))
        tau = self.head.logit_scale.exp()
        return self.variants(self.objective, described, batch, seeds[:, 0], tau, self.image_size)
