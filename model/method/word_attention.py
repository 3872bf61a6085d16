"""Where the network looks for the category's word, whatever the point: what embeddings of points have to beat."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from config import ConfigError
from model.backbone.attention import mean_maps, read_layers, read_noised
from model.backbone.diffusion import draw_latents
from model.backbone.text import PromptEncoder
from model.method.base import Batch, Method, select_side
from model.prompt.build import fingerprint_diffusion, load_diffusion
from model.prompt.text_prompt import category_word
from utils.geometry import Size
from utils.noise import draw_noise


class WordAttention(Method):
    """One map for all points of a pair: the mean over LDM.LAYERS and all heads, under PROMPT.TEMPLATE."""

    reads = ("posterior",)

    def __init__(self, unet, scheduler, text: PromptEncoder, **settings) -> None:
        super().__init__()
        self.unet, self.scheduler, self.text = unet, scheduler, text
        self.image_size, self.template = settings["image_size"], settings["template"]
        self.layers, self.timestep = settings["layers"], settings["timestep"]
        self.scaling_factor = settings["scaling_factor"]

    def similarity(self, batch: Batch, seeds: Tensor) -> SameMap:
        latents = draw_latents(batch["trg_posterior"], self.scaling_factor)
        noise = draw_noise(seeds[:, 1], latents.shape[1:], latents.device)
        words = [category_word(category) for category in select_side(batch, "trg_")["category"]]
        condition = self.text.encode_text([self.template.replace("{category}", word) for word in words])
        found = read_noised(self.unet, self.scheduler, self.layers, latents, noise, self.timestep, condition)
        first = self._count(self.template.partition("{category}")[0])
        maps = [
            tokens[1 + first : 1 + first + self._count(word)].sum(dim=0)
            for tokens, word in zip(mean_maps(found), words, strict=True)
        ]
        whole = F.interpolate(torch.stack(maps)[:, None], self.image_size, mode="bilinear", align_corners=False)
        return SameMap(whole[:, 0], self.image_size)

    def _count(self, text: str) -> int:
        """Tokens of a text, without those of the beginning and end."""
        return len(self.text.tokenizer(text).input_ids) - 2

    @classmethod
    def fingerprint(cls, cfg) -> str:
        return fingerprint_diffusion(cfg)

    @classmethod
    def build(cls, cfg, device: torch.device, categories: Sequence[str] | None, training: bool, folder=None):
        if categories is None:
            raise ConfigError(f"METHOD.NAME {cfg.METHOD.NAME} looks for the categories of a data set")
        networks = load_diffusion(cfg, device)
        try:
            with read_layers(networks.unet, cfg.LDM.LAYERS, (1, 1)):
                pass
        except ValueError as error:
            raise ConfigError(f"LDM.LAYERS: {error}") from error
        return cls(
            networks.unet.requires_grad_(False),
            networks.scheduler,
            PromptEncoder(networks.text_encoder, networks.tokenizer),
            image_size=cfg.DATASET.IMAGE_SIZE,
            template=cfg.PROMPT.TEMPLATE,
            layers=cfg.LDM.LAYERS,
            timestep=cfg.TEST.TIMESTEP,
            scaling_factor=networks.facts.scaling_factor,
        )


class SameMap:
    """A map (B, R, R) for whatever point."""

    def __init__(self, maps: Tensor, src_size: Size) -> None:
        self.maps, self.src_size = maps, src_size

    def __call__(self, points_cell: Tensor) -> Tensor:
        return self.maps[:, None].expand(-1, points_cell.shape[1], -1, -1)
