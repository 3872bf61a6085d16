"""SD4Match: features of a frozen Stable Diffusion UNet under a prompt, of which only the prompt is learned."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.backbone.device import name_precision
from model.backbone.diffusion import Diffusion, draw_latents
from model.backbone.facts import get_condition
from model.backbone.text import PromptEncoder
from model.method.base import Batch, FeatureMethod, join_sides
from model.prompt.base import Prompt
from model.prompt.build import build_prompt, fingerprint_diffusion, load_diffusion, name_trained
from model.prompt.store import META_FILE, TENSOR_FILES, read_made_by, save_prompt
from utils.noise import derive_seeds, draw_noise


class SD4Match(FeatureMethod):
    """Noised latent and prompt go into the UNet; the output of up_blocks[layer] is the feature map, Eq. (1) to (3)."""

    FILES = (META_FILE, *TENSOR_FILES)
    inputs: tuple[str, ...] = ("posterior",)  # what features are made of, besides the prompt

    def __init__(
        self,
        diffusion: Diffusion,  # gives one block
        text: PromptEncoder,
        prompt: Prompt,
        *,
        image_size: tuple[int, int] = (768, 768),
        timestep: int = 261,  # diffusion step t
        ensemble: int = 1,  # noise draws whose feature maps are averaged
        posterior: str = "sample",  # latent z = a sample of the VAE's posterior, or its "mode"
        scaling_factor: float = 0.18215,  # of the VAE
    ) -> None:
        super().__init__()
        if text.width != (width := diffusion.unet.config.cross_attention_dim):
            raise ValueError(f"the text model is {text.width} wide, the UNet's cross-attention {width}: other models")
        self.diffusion, self.text = diffusion, text
        self.image_size, self.timestep, self.ensemble = image_size, timestep, ensemble
        self.posterior, self.scaling_factor = posterior, scaling_factor
        self.prompt = prompt

    def pair_features(self, batch: Batch, seeds: Tensor) -> tuple[Tensor, Tensor]:
        """Both images of every pair in one UNet call; `similarity` is the cosine of these maps."""
        images = {key: join_sides(batch, key) for key in self.inputs}
        src_feat, trg_feat = self.extract(images, self.embed(batch), torch.cat(seeds.unbind(dim=1))).chunk(2)
        return src_feat, trg_feat

    def features(self, batch: Batch, seeds: Tensor) -> Tensor:
        if not self.per_image:
            raise ValueError(f"the prompt {self.prompt.name} depends on the pair: use pair_features")
        return self.extract(batch, self.embed(batch), seeds)

    def embed(self, batch: Batch) -> Tensor:
        """The UNet's text condition (P, L, D) under the prompt. Eq. (2)"""
        tokens = self.prompt(batch)
        return tokens if self.prompt.space == "hidden" else self.text.encode_tokens(tokens)

    def extract(self, images: Batch, prompt_embeds: Tensor, seeds: Tensor) -> Tensor:
        """Feature maps (n, C, h, w), float32, of the `inputs` of n images under embeddings (P, L, D). Eq. (3)"""
        draws = self.run(images["posterior"], prompt_embeds, seeds)
        return sum(self.join(maps).float() for maps in draws) / self.ensemble

    def run(self, posterior: Tensor, prompt_embeds: Tensor, seeds: Tensor) -> Iterator[dict[str, Tensor]]:
        """The UNet's maps of n images, for each draw of the noise."""
        prompt_embeds, shape = expand_prompt(prompt_embeds, len(seeds)), (posterior.shape[1] // 2, *posterior.shape[2:])
        eps = draw_noise(derive_seeds(seeds, 0), shape, posterior.device) if self.posterior == "sample" else None
        z = draw_latents(posterior, self.scaling_factor, eps)
        for draw in range(1, self.ensemble + 1):
            yield self.diffusion.features(z, self.timestep, prompt_embeds, self.noise(z, seeds, draw))

    def join(self, maps: Mapping[str, Tensor]) -> Tensor:
        """The feature map of the UNet's maps, of which there is one here."""
        (feature,) = maps.values()
        return feature

    def noise(self, z: Tensor, seeds: Tensor, draw: int) -> Tensor | None:
        """eps of Eq. (1), the draw-th of each image; None: the clean latents go in."""
        return draw_noise(derive_seeds(seeds, draw), z.shape[1:], z.device)

    # What is learned, and how it is kept.

    @property
    def trainable(self) -> nn.Module:
        return self.prompt

    @property
    def block(self) -> str:
        return self.diffusion.last

    @property
    def precision(self) -> str:
        return name_precision(self.diffusion.dtype)

    @property
    def per_image(self) -> bool:
        return self.prompt.depends_on != "pair"

    @property
    def condition(self) -> str | None:
        return self.prompt.condition

    @property
    def reads(self) -> tuple[str, ...]:
        return (*self.inputs, "condition") if self.condition else self.inputs

    def build_optimizer(self, lr: float, linear_lr_scale: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.prompt.param_groups(lr, linear_lr_scale))

    def under(self, prompt: Prompt) -> SD4Match:
        """The same networks, shared, under another prompt on the same device."""
        other = copy.copy(self)
        other._modules = {**self._modules, "prompt": prompt}
        return other

    def save(self, folder: Path, about: Mapping[str, Any]) -> None:
        """As the release keeps prompts, with prompt.json beside."""
        save_prompt(folder, self.prompt, about)

    @classmethod
    def made_by(cls, folder: Path) -> dict[str, Any] | None:
        return read_made_by(folder)

    @classmethod
    def build(cls, cfg, device: torch.device, categories: Sequence[str] | None, training: bool, folder=None):
        prompt = build_prompt(cfg, categories, training, folder)  # a prompt that cannot be used is told first
        return cls.build_under(prompt, cfg, device, training, (f"up{cfg.METHOD.LAYER}",))

    @classmethod
    def build_under(cls, prompt: Prompt, cfg, device: torch.device, training: bool, blocks: Sequence[str]) -> SD4Match:
        """With the configured networks, on maps of `blocks`."""
        networks, stage = load_diffusion(cfg, device), cfg.TRAIN if training else cfg.TEST
        return cls(
            Diffusion(networks.unet, networks.scheduler, blocks, cfg.NETWORK.RECOMPUTE),
            PromptEncoder(networks.text_encoder, networks.tokenizer),
            prompt.to(device),
            image_size=cfg.DATASET.IMAGE_SIZE,
            timestep=stage.TIMESTEP,
            ensemble=stage.ENSEMBLE,
            posterior=cfg.METHOD.POSTERIOR,
            scaling_factor=networks.facts.scaling_factor,
        )

    @classmethod
    def fingerprint(cls, cfg) -> str:
        return fingerprint_diffusion(cfg)

    @classmethod
    def describe(cls, cfg) -> dict[str, Any]:
        described = {"network": cfg.NETWORK.FOLDER}
        if condition := name_trained(cfg).condition:
            described["condition_network"] = cfg.CONDITION[f"{get_condition(condition).network}_FOLDER"]
        return described

    @classmethod
    def name_learned(cls, cfg) -> str:
        return str(name_trained(cfg))

    @classmethod
    def takes_given_prompt(cls, cfg, training: bool) -> bool:
        return not training

    @classmethod
    def name_tested(cls, cfg) -> str:
        return cfg.PROMPT.TYPE


def expand_prompt(prompt_embeds: Tensor, n: int) -> Tensor:
    """Prompt embeddings (n, L, D), one per image of [sources; targets], from 1, n / 2 (pairs) or n rows."""
    rows = len(prompt_embeds)
    if rows not in (1, n) and 2 * rows != n:
        raise ValueError(f"the prompt gave {rows} rows for {n} images; expected 1, {n}, or one per pair")
    return prompt_embeds.expand(n, -1, -1) if rows == 1 else prompt_embeds.repeat(n // rows, 1, 1)
