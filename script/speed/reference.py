"""The plain way, as SD4Match's release goes about it: what script/benchmark.py measures this repository against.

Each training step and each test pair encodes both images with the VAE and runs the whole UNet, one image at a time,
with a hook on the block whose output is wanted; the loss loops over pairs and samples with grid_sample; every
localiser normalises and correlates anew and sorts all similarities to find the largest; frozen weights stay in
float32 and are cast in every step (autocast) where a lower precision is wanted.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.backbone.load import StableDiffusion
from model.backbone.text import PromptEncoder
from utils.noise import derive_seeds, draw_noise

EPS = 1e-6  # added to norms
CORNER_CLAMP = 1e-5  # cells
Size = tuple[int, int]


class ReferenceExtractor(nn.Module):
    """Feature map of one image at a time, by VAE and whole UNet."""

    def __init__(
        self,
        networks: StableDiffusion,  # all parts, float32
        *,
        layer: int,
        timestep: int,
        ensemble: int,
        dtype: torch.dtype,  # of the arithmetic
    ) -> None:
        super().__init__()
        self.vae, self.unet, self.scheduler = networks.vae, networks.unet, networks.scheduler
        self.text = PromptEncoder(networks.text_encoder, networks.tokenizer)
        self.scaling_factor = networks.facts.scaling_factor
        self.timestep, self.ensemble, self.dtype = timestep, ensemble, dtype
        self.unet.up_blocks[layer].register_forward_hook(self._keep)
        self._kept: Tensor | None = None

    def forward(self, image: Tensor, tokens: Tensor, noise: Tensor) -> Tensor:
        """(1, C, h, w) float32 of an image (3, H, W) under tokens (1, L, D).

        noise: (1 + ensemble, c, h', w'), the posterior's draw and then the diffusion's. The posterior is rounded to
        half precision, as the caches of this repository keep it, so that both sides see the same latent.
        """
        lower = self.dtype != torch.float32
        with torch.autocast(image.device.type, dtype=self.dtype) if lower else contextlib.nullcontext():
            latent = self._encode(image, noise[0])
            embeds = self.text.encode_tokens(tokens)
            timestep = torch.full((self.ensemble,), self.timestep, device=latent.device)
            latents = latent.repeat_interleave(self.ensemble, dim=0)
            noised = self.scheduler.add_noise(latents, noise[1:], timestep)
            self.unet(noised, timestep, embeds.repeat_interleave(self.ensemble, dim=0), return_dict=False)
        features, self._kept = self._kept, None
        return features.float().mean(dim=0, keepdim=True)

    @torch.no_grad()
    def _encode(self, image: Tensor, noise: Tensor) -> Tensor:
        moments = self.vae.encode(image[None]).latent_dist.parameters.half().float()
        mean, logvar = moments.chunk(2, dim=1)
        return self.scaling_factor * (mean + torch.exp(0.5 * logvar.clamp(-30.0, 20.0)) * noise)

    def _keep(self, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        self._kept = output


def draw_image_noise(seed: int, ensemble: int, shape: Sequence[int], device: torch.device) -> Tensor:
    """(1 + ensemble, *shape): the draws that this repository's matcher makes for an image with this seed."""
    seeds = torch.tensor([seed])
    return torch.cat([draw_noise(derive_seeds(seeds, draw), shape, device) for draw in range(ensemble + 1)])


def read_annotations(root: Path, splits: Iterable[str]) -> list[dict]:
    """The pairs of SPair-71k's splits, each from its own file."""
    records = []
    for split in splits:
        for line in (root / "Layout" / "large" / f"{split}.txt").read_text().split():
            record = json.loads((root / "PairAnnotation" / split / f"{line}.json").read_text())
            points = ("src_kps", "trg_kps", "src_bndbox", "trg_bndbox")
            records.append(record | {key: np.array(record[key], dtype=np.float32) for key in points})
    return records


def compute_loss(
    features: Sequence[tuple[Tensor, Tensor]],  # (1, C, h, w) of source and target, for each pair
    src_kps: Tensor,  # (B, N, 2) px
    trg_kps: Tensor,
    n_points: Sequence[int],  # the first n_points[b] points of pair b are valid
    image_size: Size,
    *,
    beta: float,
    kernel_size: int,
    sigma: float,
) -> Tensor:
    """Kernel-smoothed cross-entropy, mean over pairs; one pair after the other."""
    total = 0.0
    for b, (src_feat, trg_feat) in enumerate(features):
        query = src_kps[b, : n_points[b]]
        truth = trg_kps[b, : n_points[b]]
        total = total + _pair_loss(src_feat, trg_feat, query, truth, image_size, beta, kernel_size, sigma)
    return total / len(features)


def _pair_loss(src_feat, trg_feat, src_kps, trg_kps, image_size: Size, beta: float, kernel_size: int, sigma: float):
    h, w = trg_feat.shape[-2:]
    p = (_correlate(src_feat, trg_feat, _scale(src_kps, image_size, src_feat.shape[-2:])) / beta).softmax(dim=-1)
    reach = torch.arange(kernel_size, device=p.device, dtype=p.dtype) - kernel_size // 2
    dy, dx = torch.meshgrid(reach, reach, indexing="ij")
    kernel = torch.exp(-(dx**2 + dy**2) / (2 * sigma**2)) / (2 * math.pi * sigma**2)
    places = _scale(trg_kps, image_size, (h, w))[:, None, None] + torch.stack([dx, dy], dim=-1)
    x, y = places.unbind(-1)
    inside = (x > 0) & (x < w - 1) & (y > 0) & (y < h - 1)
    maps = p.view(-1, 1, h, w)
    p_at = F.grid_sample(maps, _normalise_points(places, (h, w)), padding_mode="border", align_corners=True)[:, 0]
    log_p = p_at.clamp(min=torch.finfo(p.dtype).tiny).log()
    return -(kernel * log_p * inside).sum() / len(src_kps)


def localise(src_feat: Tensor, trg_feat: Tensor, src_kps: Tensor, image_size: Size, beta: float, sigma: float) -> dict:
    """Predictions (N, 2), px, of the four localisers for one pair: maps (1, C, h, w), keypoints (N, 2) px."""
    query = _scale(src_kps, image_size, src_feat.shape[-2:])
    cells = {
        "nn": _nearest(src_feat, trg_feat, query),
        "bilinear": _bilinear(src_feat, trg_feat, query),
        "softmax": _expected_cell(_correlate(src_feat, trg_feat, query), trg_feat.shape[-2:], beta),
        "kernelsoftmax": _kernel_softmax(src_feat, trg_feat, query, beta, sigma),
    }
    return {name: _scale(cell, trg_feat.shape[-2:], image_size) for name, cell in cells.items()}


def count_hits(pred: Tensor, truth: Tensor, n_points: int, threshold: float, alphas: Sequence[float]) -> list[int]:
    """Correct predictions (N, 2) among the first n_points, at each alpha."""
    error = torch.linalg.vector_norm(pred[:n_points] - truth[:n_points], dim=-1)
    return [int((error <= alpha * threshold).sum()) for alpha in alphas]


def _scale(points: Tensor, from_size: Size, to_size: Size) -> Tensor:
    """(x, y) on a grid of from_size (H, W) -> on one of to_size; corners coincide."""
    factors = [(to_size[1] - 1) / (from_size[1] - 1), (to_size[0] - 1) / (from_size[0] - 1)]
    return points * torch.tensor(factors, device=points.device, dtype=points.dtype)


def _normalise_points(points: Tensor, size: Size) -> Tensor:
    last = torch.tensor([size[1] - 1, size[0] - 1], device=points.device, dtype=points.dtype)
    return 2 * points / last - 1


def _normalise(x: Tensor, dim: int) -> Tensor:
    return x / (torch.linalg.vector_norm(x, dim=dim, keepdim=True) + EPS)


def _correlate(src_feat: Tensor, trg_feat: Tensor, query: Tensor) -> Tensor:
    """Cosine (N, h*w) of the source at query (N, 2), cells, with every cell of the target."""
    grid = _normalise_points(query, src_feat.shape[-2:])[None, :, None]
    points = F.grid_sample(src_feat, grid, align_corners=True)[0, :, :, 0].T
    return _normalise(points, 1) @ _normalise(trg_feat, 1).flatten(2)[0]


def _nearest(src_feat: Tensor, trg_feat: Tensor, query: Tensor) -> Tensor:
    similarity = _correlate(src_feat, trg_feat, query)
    best = similarity.argsort(dim=-1, descending=True, stable=True)[:, 0]
    width = trg_feat.shape[-1]
    return torch.stack([best % width, best // width], dim=-1).to(similarity.dtype)


def _bilinear(src_feat: Tensor, trg_feat: Tensor, query: Tensor) -> Tensor:
    h, w = src_feat.shape[-2:]
    last = torch.tensor([w - 1, h - 1], device=query.device, dtype=query.dtype)
    query = query.clamp(min=CORNER_CLAMP).minimum(last - CORNER_CLAMP)
    low, total = query.floor(), 0.0
    for right in (0, 1):
        for down in (0, 1):
            corner = low + torch.tensor([right, down], device=query.device, dtype=query.dtype)
            opposite = low + torch.tensor([1 - right, 1 - down], device=query.device, dtype=query.dtype)
            weight = (query - opposite).abs().prod(dim=-1, keepdim=True)
            total = total + weight * _nearest(src_feat, trg_feat, corner)
    return total


def _expected_cell(similarity: Tensor, size: Size, beta: float) -> Tensor:
    p = (similarity / beta).softmax(dim=-1)
    return (p[..., None] * _grid(size, similarity)).sum(dim=1)


def _kernel_softmax(src_feat: Tensor, trg_feat: Tensor, query: Tensor, beta: float, sigma: float) -> Tensor:
    centre = _nearest(src_feat, trg_feat, query)
    similarity = _correlate(src_feat, trg_feat, query)
    distance = (_grid(trg_feat.shape[-2:], similarity) - centre[:, None]).square().sum(dim=-1)
    return _expected_cell(similarity * torch.exp(-distance / (2 * sigma**2)), trg_feat.shape[-2:], beta)


def _grid(size: Size, like: Tensor) -> Tensor:
    y, x = (torch.arange(n, device=like.device, dtype=like.dtype) for n in size)
    y, x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([x, y], dim=-1).view(-1, 2)
