"""The feature maps of SD4Match and DIFT: an up-block of the frozen Stable Diffusion UNet under a prompt."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from model.backbone.diffusion import cut_unet
from model.backbone.execution import RowLimit
from model.backbone.text import PromptEncoder
from model.backbone.vae import draw_latents
from model.method.base import get_cached
from model.prompt.base import Prompt
from utils.noise import derive_seeds, draw_noise

_KEPT = 1000  # categories whose text condition is remembered


class SD4Match(nn.Module):
    """Noised latent and prompt embedding through the UNet, up to one of its up-blocks.

    x_t = sqrt(abar_t) z + sqrt(1 - abar_t) eps, z the scaled VAE latent; the feature map is the output of
    up_blocks[layer], averaged over `ensemble` draws of eps for one latent. All randomness of an image
    comes from its seed. The UNet and the text model are frozen: gradients reach the prompt's tokens only.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,  # is cut in place after up_blocks[layer]
        scheduler: DDIMScheduler,
        text: PromptEncoder,
        prompt: Prompt,
        *,
        layer: int = 1,
        timestep: int = 261,  # diffusion step, 0..num_train_timesteps - 1
        ensemble: int = 1,  # noise draws whose feature maps are averaged
        posterior: str = "sample",  # latent = a sample of the VAE's posterior, or its "mode"
        scaling_factor: float = 0.18215,  # of the VAE
        max_rows: int | None = None,  # images times draws in one UNet call at test time; None: see RowLimit
        recompute: bool = False,  # gradient checkpointing
    ) -> None:
        super().__init__()
        n_steps = scheduler.config.num_train_timesteps
        if not 0 <= timestep < n_steps:
            raise ValueError(f"timestep must be in [0, {n_steps}), got {timestep}")
        if ensemble < 1:
            raise ValueError(f"ensemble must be at least 1, got {ensemble}")
        if posterior not in ("sample", "mode"):
            raise ValueError(f'posterior must be "sample" or "mode", got {posterior!r}')
        if text.width != unet.config.cross_attention_dim:
            raise ValueError(
                f"the text model's width {text.width} is not the UNet's cross-attention width "
                f"{unet.config.cross_attention_dim}: they belong to different models"
            )
        self.unet = cut_unet(unet.requires_grad_(False).eval(), layer, recompute)
        self.text = text
        self.scheduler = scheduler
        self.timestep = timestep
        self.ensemble = ensemble
        self.posterior = posterior
        self.scaling_factor = scaling_factor
        self.row_limit = RowLimit(max_rows)
        self._set_prompt(prompt)

    def _set_prompt(self, prompt: Prompt) -> None:
        self.prompt = prompt
        self.per_image = prompt.depends_on != "pair"
        self.cache_keys = ("posterior", "condition") if prompt.condition else ("posterior",)
        self._constant: tuple[tuple, dict[str, Tensor]] = ((), {})

    def under(self, prompt: Prompt) -> SD4Match:
        """The same networks, shared, under another prompt on the same device."""
        other = copy.copy(self)
        other._modules = dict(self._modules)
        other._set_prompt(prompt)
        return other

    def at(self, timestep: int, ensemble: int) -> SD4Match:
        """The same networks and prompt, shared, at another timestep and ensemble size."""
        other = copy.copy(self)
        other.timestep, other.ensemble = timestep, ensemble
        return other

    def train(self, mode: bool = True) -> SD4Match:
        """Only the prompt changes mode; the frozen networks stay in evaluation mode."""
        super().train(mode)
        self.unet.eval()
        return self

    def extract(self, batch: Mapping[str, Any], seeds: Tensor) -> Tensor:
        """Feature maps (n, C, h, w), float32, of an image batch.

        batch: "posterior" (n, 2c, h', w') and what the prompt reads; seeds: (n,) int64. Raises ValueError for a
        prompt that depends on the pair.
        """
        if not self.per_image:
            raise ValueError(f"the prompt {self.prompt.name} depends on the pair: use extract_pair")
        return self._extract(get_cached(batch, "posterior"), self._embed(batch), seeds)

    def extract_pair(
        self, batch: Mapping[str, Any], seeds: Tensor, tokens: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Source and target feature maps, each (B, C, h, w), float32, both images in one UNet call.

        seeds: (B, 2) int64, source and target. tokens: what the prompt gave for this batch, if it was called
        from outside (through a distributed wrapper); None: it is called here.
        """
        moments = torch.cat([get_cached(batch, "src_posterior"), get_cached(batch, "trg_posterior")])
        embeds = self._embed(batch) if tokens is None else self._encode(tokens)
        features = self._extract(moments, embeds, torch.cat([seeds[:, 0], seeds[:, 1]]))
        src_feat, trg_feat = features.chunk(2)
        return src_feat, trg_feat

    def _extract(self, moments: Tensor, embeds: Tensor, seeds: Tensor) -> Tensor:
        """Mean over the ensemble, (n, C, h, w), for moments (n, 2c, h', w'), embeddings (P, L, D), seeds (n,)."""
        n, device = len(moments), self.unet.device
        if len(seeds) != n:
            raise ValueError(f"{n} images need {n} seeds, got {len(seeds)}")
        embeds = expand_prompt(embeds, n)
        shape = (moments.shape[1] // 2, *moments.shape[2:])
        noise = draw_noise(derive_seeds(seeds, 0), shape, device) if self.posterior == "sample" else None
        latents = draw_latents(moments.to(device), self.scaling_factor, noise)
        if torch.is_grad_enabled():  # all activations are kept anyway
            return self._average(latents, embeds, seeds, n)
        return self.row_limit.run(n, lambda rows: self._average_in_parts(latents, embeds, seeds, rows), device)

    def _average_in_parts(self, latents: Tensor, embeds: Tensor, seeds: Tensor, rows: int) -> Tensor:
        """`_average`, with no more than `rows` images at a time."""
        parts = zip(*(values.split(rows) for values in (latents, embeds, seeds)), strict=True)
        return torch.cat([self._average(*part, rows) for part in parts])

    def _average(self, latents: Tensor, embeds: Tensor, seeds: Tensor, rows: int) -> Tensor:
        """Mean over the ensemble for latents (n, c, h', w') and embeddings (n, L, D); about `rows` per UNet call."""
        n, draws_per_call = len(latents), max(1, rows // len(latents))
        total: Tensor | float = 0.0
        for first in range(1, self.ensemble + 1, draws_per_call):
            draws = range(first, min(first + draws_per_call, self.ensemble + 1))
            noise = [draw_noise(derive_seeds(seeds, draw), latents.shape[1:], latents.device) for draw in draws]
            repeated = latents.repeat(len(draws), 1, 1, 1), torch.cat(noise), embeds.repeat(len(draws), 1, 1)
            total = total + self._run_unet(*repeated).float().unflatten(0, (len(draws), n)).sum(dim=0)
        return total / self.ensemble

    def _run_unet(self, latents: Tensor, noise: Tensor, prompt_embeds: Tensor) -> Tensor:
        timestep = torch.full((len(latents),), self.timestep, device=latents.device)
        noised = self.scheduler.add_noise(latents, noise, timestep)
        return self.unet(noised.to(self.unet.dtype), timestep, prompt_embeds, return_dict=False)[0]

    def _embed(self, batch: Mapping[str, Any]) -> Tensor:
        """The UNet's text condition (P, L, D) of a batch.

        Without gradients, a prompt that depends on nothing or on the category is encoded once, and again only after
        its values changed. They are not compared, which on a GPU would wait for the device: in-place changes count.
        """
        by_category = self.prompt.depends_on == "category"
        if torch.is_grad_enabled() or not (by_category or self.prompt.depends_on == "nothing"):
            return self._encode(self.prompt(batch))
        values = (*self.prompt.parameters(), *self.prompt.buffers())
        state = tuple((value.data_ptr(), value._version) for value in values)
        if self._constant[0] != state or len(self._constant[1]) > _KEPT:
            self._constant = (state, {})
        names, known = batch["category"] if by_category else [""], self._constant[1]
        if new := [name for name in dict.fromkeys(names) if name not in known]:
            known.update(zip(new, self._encode(self.prompt({"category": new})), strict=True))
        return torch.stack([known[name] for name in names])

    def _encode(self, tokens: Tensor) -> Tensor:
        """The UNet's text condition (P, L, D) of the prompt's output."""
        if self.prompt.space == "hidden":
            return tokens.to(device=self.unet.device, dtype=self.unet.dtype)
        return self.text.encode_tokens(tokens).to(self.unet.dtype)


def expand_prompt(prompt_embeds: Tensor, n: int) -> Tensor:
    """Prompt embeddings (n, L, D), one per image of [sources; targets], from 1, n / 2 (pairs) or n rows."""
    rows = len(prompt_embeds)
    if rows not in (1, n) and 2 * rows != n:
        raise ValueError(f"the prompt gave {rows} rows for {n} images; expected 1, {n}, or one per pair")
    return prompt_embeds.expand(n, -1, -1) if rows == 1 else prompt_embeds.repeat(n // rows, 1, 1)
