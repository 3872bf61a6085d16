"""LDM_correspondences the plain way: one point, round and step at a time, as its release goes about it.

Each step encodes its crop with the VAE, runs the whole UNet without fused attention, resizes every head's map to the
image and compares pixels. The draws are those of model.method.point_embedding, so that the numbers can be compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from torch.nn import functional as F

from model.backbone.attention import name_layers
from model.method.point_embedding import Descent, Reading
from utils.noise import derive_seeds, draw_noise


@dataclass
class PlainPoints:
    """Images are (3, R, R) in [-1, 1]; crops have `side` px, of which a point keeps `margin` to the border."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    scheduler: DDIMScheduler
    scaling_factor: float
    side: int
    margin: int
    layers: Sequence[str]
    heads: Sequence[int] | None  # None: all
    token: int
    uniform_noise: bool = True

    def find(self, image: Tensor, point: Tensor, start: Tensor, seed: int, descent: Descent) -> tuple[Tensor, Tensor]:
        """The embedding (L, D) of a point (2,), px, and its losses (steps,)."""
        embedding = start.clone().requires_grad_()
        adam, losses = torch.optim.Adam([embedding], lr=descent.lr), []
        for step in range(descent.steps):
            adam.zero_grad()
            loss = self.loss(image, point, embedding, seed, descent, step)
            loss.backward()
            adam.step()
            losses.append(loss.detach())
        return embedding.detach(), torch.stack(losses)

    def loss(self, image: Tensor, point: Tensor, embedding: Tensor, seed: int, descent: Descent, step: int) -> Tensor:
        size = image.shape[-1]
        chance = draw_noise(derive_seeds(torch.tensor([seed]), 2 * step + 1), (3,), uniform=True)[0]
        x, y = point.tolist()
        if chance[2] < descent.flip_prob:
            image, x = image.flip(-1), size - x
        x0, y0 = (self._start(size, value, chance[axis]) for axis, value in enumerate((x, y)))
        maps = self._maps(image, x0, y0, descent.timestep, embedding, seed, 2 * step + 2)
        whole = _resize(maps, size)
        row, column = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
        centre = [(x - x0) / self.side * size, (y - y0) / self.side * size]
        blob = torch.exp(-((column - centre[0]) ** 2 + (row - centre[1]) ** 2) / (2 * descent.sigma**2))
        return F.mse_loss(whole, blob.to(whole).expand_as(whole))

    @torch.no_grad()
    def read(self, image: Tensor, embedding: Tensor, seed: int, reading: Reading) -> Tensor:
        """Maps (layers, R, R) of an embedding."""
        size = image.shape[-1]
        total, count = torch.zeros(len(self.layers), size, size), torch.zeros(size, size)
        corners = [(0, 0), (0, size), (size, 0), (size, size)]
        for number in range(reading.crops):
            if number < 4:
                x, y = corners[number]
            else:
                place = int((total / count).mean(dim=0).argmax())
                x, y = place % size + 0.5, place // size + 0.5
            chance = draw_noise(derive_seeds(torch.tensor([seed]), 2 * number + 1), (2,), uniform=True)[0]
            x0, y0 = (self._start(size, value, chance[axis]) for axis, value in enumerate((x, y)))
            maps = self._maps(image, x0, y0, reading.timestep, embedding, seed, 2 * number + 2)
            total[:, y0 : y0 + self.side, x0 : x0 + self.side] += _resize(maps, self.side)
            count[y0 : y0 + self.side, x0 : x0 + self.side] += 1
        return total / count

    def _start(self, size: int, value: float, chance: Tensor) -> int:
        slack = size - self.side
        least = int(min(max(0, value - self.side + self.margin), slack))
        greatest = int(min(max(0, value - self.margin), slack))
        return least + int(float(chance) * (greatest - least + 1))

    def _maps(self, image, x0: int, y0: int, timestep: int, embedding: Tensor, seed: int, draw: int):
        """(heads, s, s) of each layer."""
        crop = F.interpolate(
            image[None, :, y0 : y0 + self.side, x0 : x0 + self.side], image.shape[-2:], mode="bilinear"
        )
        with torch.no_grad():
            latent = self.vae.encode(crop).latent_dist.mode() * self.scaling_factor
        noise = draw_noise(derive_seeds(torch.tensor([seed]), draw), latent.shape[1:], uniform=self.uniform_noise)
        step = torch.tensor([timestep])
        with _writing_down(self.unet, self.layers) as kept:
            self.unet(self.scheduler.add_noise(latent, noise, step), step, embedding[None])
        heads = slice(None) if self.heads is None else list(self.heads)
        maps = [kept[layer][heads, :, self.token] for layer in self.layers]
        return [value.unflatten(1, (round(value.shape[1] ** 0.5),) * 2) for value in maps]


def _resize(maps: Sequence[Tensor], size: int) -> Tensor:
    """(layers, size, size): every head's map resized, then their mean."""
    whole = [F.interpolate(value[None], (size, size), mode="bilinear", align_corners=False) for value in maps]
    return torch.stack([value[0].mean(dim=0) for value in whole])


@contextmanager
def _writing_down(unet: UNet2DConditionModel, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Probabilities (heads, places, tokens) of each layer, in forward passes of one image within the context."""
    kept: dict[str, Tensor] = {}
    modules = name_layers(unet)
    usual = {name: module.processor for name, module in modules.items()}
    for module in modules.values():
        module.set_processor(AttnProcessor())
    for name in layers:
        plain = modules[name].get_attention_scores

        def write_down(*inputs, name=name, plain=plain) -> Tensor:
            kept[name] = plain(*inputs)
            return kept[name]

        modules[name].get_attention_scores = write_down
    try:
        yield kept
    finally:
        for name, module in modules.items():
            module.set_processor(usual[name])
        for name in layers:
            del modules[name].get_attention_scores
