"""A text embedding for each point: found by descent on attention maps of one image, read on those of another.

Images are squares of R pixels. A row is one embedding of one point. Rows know nothing of each other: each has its own
crops, noise and Adam state, all from its own seed, so that neither chunks nor batches change a result.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F

from model.backbone.attention import read_layers, read_noised
from model.backbone.diffusion import draw_latents, encode_posterior
from utils.crop import CropRule, bilinear_matrix
from utils.noise import derive_seeds, draw_noise

Tick = Callable[[int], None]  # told how many rows have gone through the UNet; may raise to cancel


@dataclass(frozen=True)
class Descent:
    """How an embedding is found: `steps` of Adam towards a blob around the point."""

    steps: int
    lr: float
    sigma: float  # standard deviation of the blob, px
    timestep: int
    flip_prob: float  # chance, at each step, that the image is mirrored


@dataclass(frozen=True)
class Reading:
    """How an embedding is read on an image: the mean over `crops` random crops, the first four in the corners."""

    crops: int
    timestep: int


@dataclass(frozen=True, eq=False)
class Rows:
    """What each row is about; keys[i] names its image."""

    keys: tuple[int, ...]
    anchors: Tensor  # (n, 2), (x, y) px
    seeds: Tensor  # (n,) int64

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, part: slice) -> Rows:
        return Rows(self.keys[part], self.anchors[part], self.seeds[part])


class CropLatents:
    """The latents of crops, resized to the image's size: each is encoded once and kept while there is room."""

    def __init__(self, vae: AutoencoderKL, scaling_factor: float, batch_size: int, kept: int) -> None:
        self.vae, self.scaling_factor, self.batch_size, self.kept = vae, scaling_factor, batch_size, kept
        self._found: OrderedDict[tuple, Tensor] = OrderedDict()

    def get(
        self,
        images: Mapping[int, Tensor],  # (3, R, R) in [-1, 1], by key
        keys: Sequence[int],
        starts: Tensor,  # (n, 2) int64, (x, y)
        side: int,
        mirrored: Tensor | None = None,  # (n,) bool
    ) -> Tensor:
        """(n, c, h, w) float32: the mean of the posterior, scaled."""
        flips = [False] * len(keys) if mirrored is None else mirrored.tolist()
        crops = [(key, *start, side, flip) for key, start, flip in zip(keys, starts.tolist(), flips, strict=True)]
        missing = [crop for crop in dict.fromkeys(crops) if crop not in self._found]
        for first in range(0, len(missing), self.batch_size):
            part = missing[first : first + self.batch_size]
            self._found.update(zip(part, self._encode(images, part), strict=True))
        for crop in crops:
            self._found.move_to_end(crop)
        latents = torch.stack([self._found[crop] for crop in crops])
        while len(self._found) > self.kept:
            self._found.popitem(last=False)
        return latents

    @torch.no_grad()
    def _encode(self, images: Mapping[int, Tensor], crops: Sequence[tuple]) -> Tensor:
        cut = [_crop(images[key], x, y, side, flip) for key, x, y, side, flip in crops]
        return draw_latents(encode_posterior(self.vae, torch.cat(cut)), self.scaling_factor).clone()


def _crop(image: Tensor, x: int, y: int, side: int, mirrored: bool) -> Tensor:
    """(1, 3, R, R): a crop, resized bilinearly to the size of its image."""
    image = image.flip(-1) if mirrored else image
    crop = image[None, :, y : y + side, x : x + side]
    return F.interpolate(crop, image.shape[-2:], mode="bilinear", align_corners=False)


class PointReader:
    """The frozen networks, and what of the attention is looked at."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        scheduler: DDIMScheduler,
        latents: CropLatents,
        rule: CropRule,
        *,
        layers: Sequence[str] = ("up1.0", "up1.1", "up1.2", "up2.0"),
        heads: Sequence[int] | None = (4, 5, 6, 7),
        token: int = 1,
        uniform_noise: bool = True,
        rows_at_once: int = 64,
    ) -> None:
        self.unet, self.scheduler, self.latents, self.rule = unet, scheduler, latents, rule
        self.layers, self.heads, self.token = tuple(layers), heads, token
        self.uniform_noise, self.rows_at_once = uniform_noise, rows_at_once
        with read_layers(unet, self.layers, (1, 1), heads=heads):  # refuses what is not there
            pass

    def on(self, layers: Sequence[str]) -> PointReader:
        """The same networks, shared, looked at in other layers."""
        other = copy.copy(self)
        other.layers = tuple(layers)
        with read_layers(self.unet, other.layers, (1, 1), heads=self.heads):
            return other

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def width(self) -> int:
        """Of an embedding's tokens."""
        return self.unet.config.cross_attention_dim

    def maps(self, latents: Tensor, timestep: int, noise: Tensor, embeddings: Tensor) -> list[Tensor]:
        """The share of the token in each layer, (n, s, s) float32, mean over the heads."""
        inputs = latents, noise, timestep, embeddings
        found = read_noised(self.unet, self.scheduler, self.layers, *inputs, heads=self.heads)
        return [found[layer].maps()[..., self.token].mean(dim=1) for layer in self.layers]

    def find(
        self, images: Mapping[int, Tensor], rows: Rows, start: Tensor, descent: Descent, tick: Tick = lambda n: None
    ) -> tuple[Tensor, Tensor]:
        """Embeddings (n, L, D) float32 of rows, from `start` (n, L, D), and their losses (n, steps)."""

        @torch.enable_grad()
        def find_part(part: slice) -> tuple[Tensor, Tensor]:
            embeddings = start[part].float().clone().requires_grad_()
            adam, losses = torch.optim.Adam([embeddings], lr=descent.lr), []
            for step in range(descent.steps):
                loss = self.loss(images, rows[part], embeddings, descent, step)
                (embeddings.grad,) = torch.autograd.grad(loss.sum(), embeddings)  # a sum: rows stay apart
                adam.step()
                losses.append(loss.detach())
                tick(len(embeddings))
            return embeddings.detach(), torch.stack(losses, dim=1)

        parts = [found for _, found in self._in_parts(find_part, len(rows))]
        embeddings, losses = (torch.cat(values) for values in zip(*parts, strict=True))
        return embeddings, losses

    def loss(self, images: Mapping[int, Tensor], rows: Rows, embeddings: Tensor, descent: Descent, step: int) -> Tensor:
        """(n,): mean squared difference of the maps, resized to R x R, and the blob around the point; for one step."""
        chance = draw_noise(derive_seeds(rows.seeds, 2 * step + 1), (3,), uniform=True)
        mirrored = chance[:, 2] < descent.flip_prob
        anchors = rows.anchors.clone()
        anchors[mirrored, 0] = self.rule.image - anchors[mirrored, 0]
        starts = self.rule.draw(anchors, chance[:, :2])
        latents = self.latents.get(images, rows.keys, starts, self.rule.side, mirrored)
        noise = self._draw_noise(latents, rows.seeds, 2 * step + 2)
        maps = self.maps(latents, descent.timestep, noise, embeddings)
        centres = (anchors - starts).to(latents) * (self.rule.image / self.rule.side)
        return squared_error(maps, centres, descent.sigma, self.rule.image)

    def read(
        self,
        images: Mapping[int, Tensor],
        rows: Rows,  # anchors are not used
        embeddings: Tensor,
        reading: Reading,
        tick: Tick = lambda n: None,
    ) -> Iterator[tuple[slice, Tensor]]:
        """(slice of the rows, maps (n, layers, R, R) of the embeddings on the rows' images), part by part."""

        @torch.no_grad()
        def read_part(part: slice) -> Tensor:
            return self._read_part(images, rows[part], embeddings[part], reading, tick)

        yield from self._in_parts(read_part, len(rows))

    def _read_part(self, images: Mapping[int, Tensor], rows: Rows, embeddings: Tensor, reading: Reading, tick: Tick):
        """Rows go through the crops in step; after the corners, crops are drawn around each row's own maximum."""
        n, size, side = len(rows), self.rule.image, self.rule.side
        total = torch.zeros(n, len(self.layers), size, size, device=embeddings.device)
        count = torch.zeros(n, 1, size, size, device=embeddings.device)
        for number in range(reading.crops):
            anchors = self.rule.corners[number].expand(n, 2) if number < 4 else _peak(total / count.clamp(min=1))
            starts = self.rule.draw(anchors, draw_noise(derive_seeds(rows.seeds, 2 * number + 1), (2,), uniform=True))
            latents = self.latents.get(images, rows.keys, starts, side)
            noise = self._draw_noise(latents, rows.seeds, 2 * number + 2)
            maps = self.maps(latents, reading.timestep, noise, embeddings)
            crops = torch.stack([_resize(value, side) for value in maps], dim=1)  # (n, layers, side, side)
            for row, (x, y) in enumerate(starts.tolist()):
                total[row, :, y : y + side, x : x + side] += crops[row]
                count[row, :, y : y + side, x : x + side] += 1
            tick(n)
        return total / count.clamp(min=1)

    def _draw_noise(self, latents: Tensor, seeds: Tensor, draw: int) -> Tensor:
        return draw_noise(derive_seeds(seeds, draw), latents.shape[1:], latents.device, uniform=self.uniform_noise)

    def _in_parts(self, compute: Callable[[slice], object], n: int) -> Iterator[tuple[slice, object]]:
        """(slice, what `compute` makes of it), `rows_at_once` rows at a time; half as many where memory runs out."""
        first = 0
        while first < n:
            part = slice(first, min(first + self.rows_at_once, n))
            try:
                result = compute(part)
            except torch.OutOfMemoryError:
                if self.rows_at_once == 1:
                    raise
                self.rows_at_once = (self.rows_at_once + 1) // 2
                torch.cuda.empty_cache()
                continue
            yield part, result
            first = part.stop


def squared_error(maps: Sequence[Tensor], centres: Tensor, sigma: float, size: int) -> Tensor:
    """(n,): mean over layers and size x size pixels of (M - G)^2, without tensors of that size.

    maps: A, (n, s, s) each; M = U A U^T is the map resized; G[r, k] = exp(-((k - x)^2 + (r - y)^2) / 2 sigma^2), which
    is g_y g_x^T, the blob around centres (n, 2), (x, y) px, with peak 1. With K = U^T U,
    |M - G|^2 = <A, K A K> - 2 (U^T g_y)^T A (U^T g_x) + |G|^2.
    """
    pixels = torch.arange(size, device=centres.device, dtype=centres.dtype)
    g_x, g_y = torch.exp(-((pixels - centres.T[..., None]) ** 2) / (2 * sigma**2))  # (n, size) each
    total = len(maps) * (g_x**2).sum(dim=1) * (g_y**2).sum(dim=1)
    for attention in maps:
        resize = bilinear_matrix(size, attention.shape[-1], attention.device).to(attention)
        gram = resize.T @ resize
        total = total + (attention * (gram @ attention @ gram)).sum(dim=(1, 2))
        total = total - 2 * torch.einsum("nr,nrk,nk->n", g_y @ resize, attention, g_x @ resize)
    return total / (len(maps) * size**2)


def _resize(maps: Tensor, size: int) -> Tensor:
    """Maps (n, s, s) resized bilinearly to (n, size, size)."""
    resize = bilinear_matrix(size, maps.shape[-1], maps.device)
    return resize @ maps @ resize.T


def _peak(maps: Tensor) -> Tensor:
    """Middle of the greatest pixel of the mean over layers of maps (n, layers, R, R): (n, 2), (x, y), on the CPU."""
    index = maps.mean(dim=1).flatten(1).argmax(dim=1).cpu()
    return torch.stack((index % maps.shape[-1], index // maps.shape[-1]), dim=1) + 0.5
