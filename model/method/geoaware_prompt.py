"""GeoAware-SC's post-processor on the layers of Stable Diffusion under one of SD4Match's prompts, learned or in words.

GEOAWARE.PROMPT_LR 0: the prompt PROMPT.TYPE is as it is, and the post-processor learns. Above 0, a new prompt,
PROMPT.KIND, learns with it; both are kept in one file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.backbone.facts import network_facts
from model.head_learning import HeadLearning
from model.method.base import Batch, Method, select_side
from model.method.geoaware import build_head, describe_cells, join_maps, join_on_grid
from model.method.sd4match import SD4Match
from model.prompt.build import build_prompt, name_trained
from model.source import MIRRORED, find_stable_diffusion


class GeoAwarePrompt(HeadLearning, SD4Match):
    """FEATURES.TAPS of the whole image at once, at SD4Match's noise, timestep and ensemble, beside DINOv2's tokens."""

    FILES = Method.FILES
    inputs = ("posterior", "dino")
    prompt_lr = 0.0  # of the prompt, times the rate of the post-processor; 0: it does not learn

    def __init__(self, *parts: Any, **options: Any) -> None:
        super().__init__(*parts, **options)
        self.head = None

    @property
    def reads(self) -> tuple[str, ...]:
        return super().reads + tuple(f"{key}{MIRRORED}" for key in super().reads if self.mirrors)

    @property
    def trainable(self) -> nn.Module | None:
        parts = {"head": self.head, "prompt": self.prompt if self.prompt_lr else None}
        return nn.ModuleDict({name: part for name, part in parts.items() if part is not None}) if self.head else None

    def extract(self, images: Batch, prompt_embeds: Tensor, seeds: Tensor) -> Tensor:
        layers = super().extract(images, prompt_embeds, seeds)
        return describe_cells(self.head, [layers], images["dino"])

    def join(self, maps: Mapping[str, Tensor]) -> Tensor:
        """On the finest grid of the layers."""
        return join_on_grid(list(maps.values()), max((x.shape[-2:] for x in maps.values()), key=math.prod))

    def maps(self, batch: Batch, side: str, mirrored: bool, seeds: Tensor) -> Tensor:
        if mirrored:
            others = {key.removesuffix(MIRRORED): value for key, value in batch.items() if key.endswith(MIRRORED)}
            batch = {**batch, **others}
        images = select_side(batch, f"{side}_")
        prompt_embeds = self.embed(images if self.per_image else batch)
        return join_maps([super().extract(images, prompt_embeds, seeds)], images["dino"])

    def build_optimizer(self, lr: float, linear_lr_scale: float) -> torch.optim.Optimizer:
        groups = [{"name": "head", "params": list(self.head.parameters()), "lr": lr, "weight_decay": self.weight_decay}]
        if self.prompt_lr:
            groups += self.prompt.param_groups(lr * self.prompt_lr, linear_lr_scale)
        return torch.optim.AdamW(groups, lr=lr, weight_decay=0.0)

    save, load = Method.save, Method.load
    made_by = classmethod(Method.made_by.__func__)

    @classmethod
    def build(cls, cfg, device: torch.device, categories: Sequence[str] | None, training: bool, folder=None):
        together = cfg.GEOAWARE.PROMPT_LR > 0
        learned = None if cfg.METHOD.WEIGHTS else folder  # a folder of the post-processor's is none of the prompt's
        prompt = build_prompt(cfg, categories, training=together, folder=learned).requires_grad_(together)
        method = cls.build_under(prompt, cfg, device, training, cfg.FEATURES.TAPS)
        method.prompt_lr = cfg.GEOAWARE.PROMPT_LR
        if training or cfg.METHOD.WEIGHTS:
            facts = network_facts(**find_stable_diffusion(cfg))
            channels = [facts.tap_shape(cfg.DATASET.IMAGE_SIZE, tap)[0] for tap in cfg.FEATURES.TAPS]
            method.head = build_head(cfg, channels).to(device)
        if training:
            method.learn_as(cfg.GEOAWARE)
        return method

    @classmethod
    def takes_given_prompt(cls, cfg, training: bool) -> bool:
        return not cfg.GEOAWARE.PROMPT_LR

    @classmethod
    def name_learned(cls, cfg) -> str:
        prompt = f"with_{name_trained(cfg)}" if cfg.GEOAWARE.PROMPT_LR else f"on_{cfg.PROMPT.TYPE}"
        return f"{Method.name_learned.__func__(cls, cfg)}_{prompt}"

    @classmethod
    def name_tested(cls, cfg) -> str:
        return Path(cfg.METHOD.WEIGHTS).name or cfg.PROMPT.TYPE

    @classmethod
    def describe(cls, cfg) -> dict[str, Any]:
        return {}
