"""Images that Stable Diffusion makes of a prompt: what a learned prompt says, in pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from model.backbone.load import StableDiffusion
from model.backbone.text import PromptEncoder
from model.prompt.base import Prompt


class Generator:
    """The stock pipeline with classifier-free guidance, run from prompt embeddings. There is no safety checker."""

    def __init__(self, networks: StableDiffusion, steps: int = 50, guidance: float = 7.5) -> None:
        """networks: all parts. steps: of denoising. guidance: weight against the empty prompt; 1 = none."""
        self.steps, self.guidance = steps, guidance
        self._text = PromptEncoder(networks.text_encoder, networks.tokenizer)
        self._pipeline = StableDiffusionPipeline(
            vae=networks.vae,
            text_encoder=networks.text_encoder,
            tokenizer=networks.tokenizer,
            unet=networks.unet,
            scheduler=networks.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        self._pipeline.set_progress_bar_config(disable=True)

    def to(self, device: torch.device | str) -> Generator:
        """Move the networks, in place."""
        for network in (self._pipeline.vae, self._pipeline.text_encoder, self._pipeline.unet):
            nn.Module.to(network, device)  # diffusers' own `to` warns of half precision on a CPU, where none runs
        return self

    @torch.no_grad()
    def embed(self, prompt: Prompt, batch: Mapping[str, Any]) -> Tensor:
        """What the UNet attends to, (P, L, D), for the rows P that the prompt gives for a batch."""
        tokens = prompt(batch)
        return tokens if prompt.space == "hidden" else self._text.encode_tokens(tokens)

    @torch.no_grad()
    def generate(self, prompt_embeds: Tensor, seeds: Sequence[int]) -> list[np.ndarray]:
        """An image (H, W, 3) uint8 for each seed from embeddings (1, L, D), of the size the network was made for.

        An image depends on its own seed only; the noise is drawn on the CPU, so that devices agree.
        """
        unet = self._pipeline.unet
        condition = {
            "prompt_embeds": prompt_embeds.to(unet.device, unet.dtype),
            "negative_prompt_embeds": self._text.encode_text([""]).to(unet.device, unet.dtype),
        }
        settings = {"num_inference_steps": self.steps, "guidance_scale": self.guidance, "output_type": "np"}
        images = []
        for seed in seeds:
            noise = torch.Generator().manual_seed(seed)
            images.append(self._pipeline(**condition, **settings, generator=noise).images[0])
        return [(255 * image).round().astype(np.uint8) for image in images]
