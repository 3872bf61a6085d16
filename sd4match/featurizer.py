"""Features to plug into other code: maps of any layers of Stable Diffusion's UNet, or of DINOv2 or DINOv3."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from config import ConfigError, load_config
from engine.check import RULES, check_config
from model.backbone.architecture import HUB_IDS, VISION
from model.backbone.device import check_finite, resolve_device, resolve_dtype
from model.backbone.diffusion import encode_posterior
from model.backbone.load import load_stable_diffusion, load_transformer
from model.backbone.vision import compute_layer_maps, name_layers
from model.method.sd4match import SD4Match
from model.prompt.build import build_prompt
from model.prompt.name import BASELINES, parse_prompt_name
from model.source import find_stable_diffusion
from sd4match.source import MINI_NOTE, find_settings
from utils.frame import Frame, Pad, Stretch, as_size
from utils.geometry import Size, cell_to_px, px_to_cell
from utils.image import ImageSource, read_image
from utils.noise import identifier_seed

FITS = ("stretch", "pad", "keep")
_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v"}


class Features(dict[str, Tensor]):
    """{layer: map (B, C, h, w)} float32, not normalised, and how their cells lie on the images.

    The centres of the corner cells are those of the corner pixels of the networks' input, as everywhere here.
    """

    def __init__(self, maps: Mapping[str, Tensor], frame: Frame, sizes: Sequence[Size]) -> None:
        super().__init__(maps)
        self.frame = frame  # of the networks' input
        self.sizes = list(sizes)  # (H, W) of each image

    def to_cells(self, layer: str, points: Tensor, index: int = 0) -> Tensor:
        """Points (..., N, 2), (x, y) px of image `index` -> cells of a layer's map."""
        px = self.frame.to_px(torch.as_tensor(points, dtype=torch.float32), self.sizes[index])
        return px_to_cell(px, self.frame.image_size, self[layer].shape[-2:])

    def to_pixels(self, layer: str, cells: Tensor, index: int = 0) -> Tensor:
        """The inverse of `to_cells`."""
        px = cell_to_px(torch.as_tensor(cells, dtype=torch.float32), self[layer].shape[-2:], self.frame.image_size)
        return self.frame.to_orig(px, self.sizes[index])


class Featurizer:
    """images -> {layer: (B, C, h, w)}.

    Layers of Stable Diffusion: "down0", ..., "mid", "up0", "up1", ... (a block's output), "up1.attentions.1" (that of
    a part), "up1.attentions.1.query", ".key", ".value" (of its self-attention), or any part by diffusers' name. Of
    DINO: "block0", ..., "block0.query", ".key", ".value", and "last" (the final norm's output).
    """

    def __init__(
        self,
        name: str = "mini",  # "mini", "sd2-1", "sd1-5", "dinov2-base", a folder, hub id or learned prompt
        layers: str | Sequence[str] | None = None,  # None: "up1", or "last" of DINO
        timestep: int | None = None,  # diffusion step, 0..999; None: the configuration's
        prompt: str = "",  # words, or a learned prompt's name or folder
        ensemble: int | None = None,  # noise draws that are averaged; None: the configuration's
        *,
        image_size: int | Size | None = None,  # (H, W) px of the networks' input; None: the configuration's
        fit: str = "stretch",  # "stretch", "pad" (aspect kept, on black), "keep" (aspect kept: the longer side becomes
        # that of image_size, the other the nearest multiple of the stride)
        device: str = "auto",
        precision: str = "auto",  # of the UNet or DINO: "auto", "fp32", "fp16", "bf16"; the VAE runs in fp32
        seed: int = 0,  # of the noise, which also depends on the pixels
        settings: Mapping[str, Any] | None = None,  # other keys of config/default.py
    ) -> None:
        if fit not in FITS:
            raise ValueError(f"fit must be one of {', '.join(FITS)}; got {fit!r}")
        _require_range("seed", "SEED", seed)
        self.fit, self.seed = fit, seed
        self.device = resolve_device(device)
        layers = (layers,) if isinstance(layers, str) else layers and tuple(layers)
        dtype = resolve_dtype(precision, self.device)
        self.precision = str(dtype).removeprefix("torch.")
        if is_dino(name):
            self._network = _Dino(name, layers or ("last",), dtype, self.device)
        else:
            given = {"TEST.TIMESTEP": timestep, "TEST.ENSEMBLE": ensemble, "PRECISION": precision, "DEVICE": device}
            self._network = _StableDiffusion(
                *(name, layers or ("up1",), prompt, self.device),
                {key: value for key, value in given.items() if value is not None} | dict(settings or {}),
            )
        self.layers = self._network.layers
        self.image_size = as_size(self._network.image_size if image_size is None else image_size)
        _require_range("image_size", "DATASET.IMAGE_SIZE", *self.image_size)
        self.stride = self._network.stride  # the sides of the input are multiples of it, px
        if fit != "keep" and any(side % self.stride for side in self.image_size):
            raise ValueError(f"image_size {self.image_size}: {name} takes multiples of {self.stride} px per side")

    def __call__(
        self,
        images: Tensor | ImageSource | Sequence[ImageSource],  # (B, 3, H, W) or (3, H, W) in [0, 1]; PIL, paths, ...
        prompt: str | Sequence[str] | None = None,  # words of all images, or of each; None: as given at first
        category: str | Sequence[str] | None = None,  # of images under a Class prompt
        *,
        grad: bool = False,  # whether gradients reach tensors that are given
        batch_size: int = 8,
    ) -> Features:
        """The maps of `layers` in their order. ValueError for images that do not fit into one batch."""
        _require_range("batch_size", "EVAL.BATCH_SIZE", batch_size)
        images = list(images) if isinstance(images, Tensor) and images.dim() == 4 else images
        images = list(images) if isinstance(images, list | tuple) else [images]
        if not images:
            raise ValueError("no images")
        pixels, sizes, seeds = zip(*(self._read(image) for image in images), strict=True)
        frames = {self._frame(size) for size in sizes}
        if len(frames) > 1:
            shapes = " and ".join(sorted(f"{f.image_size[0]} x {f.image_size[1]}" for f in frames)[:2])
            raise ValueError(f'images of one call must have one shape, got {shapes} px; call one by one, or fit "pad"')
        (frame,) = frames
        words, categories = _spread(prompt, len(images)), _spread(category, len(images))
        parts = []
        with torch.set_grad_enabled(grad):
            for first in range(0, len(images), batch_size):
                part = slice(first, first + batch_size)
                batch = torch.cat([fit_pixels(one.to(self.device), frame) for one in pixels[part]])
                maps = self._network.compute(batch, torch.tensor(seeds[part]), words[part], categories[part])
                for layer, value in maps.items():
                    names = [f"image {first + i}" for i in range(len(value))]
                    check_finite(value, names, layer, self.precision)
                parts.append(maps)
        return Features({layer: torch.cat([part[layer] for part in parts]) for layer in self.layers}, frame, sizes)

    def _read(self, image: Tensor | ImageSource) -> tuple[Tensor, Size, int]:
        """(1, 3, H, W) in [0, 1], its size, and the seed of its noise: that of the same pixels to a Matcher."""
        if not isinstance(image, Tensor):
            picture = read_image(image)
            content, size = picture.image.tobytes(), picture.size
            pixels = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            pixels = pixels.view(picture.image.height, picture.image.width, 3).permute(2, 0, 1)[None] / 255
        else:
            if image.dim() != 3 or len(image) != 3 or not image.is_floating_point():
                raise ValueError(f"a tensor must be floating, (3, H, W) or (B, 3, H, W); got {tuple(image.shape)}")
            low, high = image.detach().aminmax()
            if not (low >= 0 and high <= 1):
                raise ValueError(f"a tensor's values must lie in [0, 1]; these range from {low:g} to {high:g}")
            pixels, size = image.float()[None], tuple(image.shape[-2:])
            content = (image.detach() * 255).round().byte().permute(1, 2, 0).cpu().numpy().tobytes()
        return pixels, size, identifier_seed(self.seed, hashlib.blake2b(content, digest_size=16).hexdigest())

    def _frame(self, size: Size) -> Frame:
        if self.fit != "keep":
            return (Stretch if self.fit == "stretch" else Pad)(self.image_size)
        scale = max(self.image_size) / max(size)
        return Stretch(tuple(max(1, round(side * scale / self.stride)) * self.stride for side in size))


class _StableDiffusion:
    """Maps of the UNet's layers; `layers` are as they were asked for."""

    def __init__(self, name: str, layers: Sequence[str], prompt: str, device: torch.device, given: dict) -> None:
        learned = is_learned(prompt)
        if prompt in BASELINES:
            raise ConfigError(f'prompt takes the words themselves, such as "" or "a photo of a dog"; got {prompt!r}')
        found = find_settings(name, prompt if learned else None)
        learned = learned or found.settings["PROMPT.TYPE"] not in BASELINES
        cfg = check_config(load_config(found.config_file, overrides={**found.settings, **given}), training=False)
        if cfg.NETWORK.NAME == "mini":
            logging.getLogger("sd4match").warning(MINI_NOTE)
        self.layers, self.words, self.image_size = tuple(layers), prompt, cfg.DATASET.IMAGE_SIZE
        self.learned = build_prompt(cfg, None, False, found.prompt_folder) if learned else None
        if self.learned and self.learned.condition:
            raise ConfigError(f"the prompt {self.learned.name} is made from images: use Matcher for it")
        self.taps = {layer: find_path(layer) for layer in layers}
        taps = tuple(dict.fromkeys(self.taps.values()))
        self.method = SD4Match.build_under(self.learned or nn.Identity(), cfg, device, False, taps)
        networks = load_stable_diffusion(parts=("vae",), device=device, seed=cfg.SEED, **find_stable_diffusion(cfg))
        self.vae, self.stride = networks.vae, networks.facts.image_divisor

    def compute(
        self, pixels: Tensor, seeds: Tensor, words: Sequence[str | None], categories: Sequence[str | None]
    ) -> dict[str, Tensor]:
        """Of pixels (n, 3, H, W) in [0, 1], the mean over the ensemble."""
        posterior, total = encode_posterior(self.vae, pixels * 2 - 1), dict.fromkeys(self.layers, 0.0)
        for maps in self.method.run(posterior, self.embed(words, categories), seeds):
            for layer, tap in self.taps.items():
                total[layer] = total[layer] + _as_map(maps[tap], posterior.shape[-2:]).float()
        return {layer: value / self.method.ensemble for layer, value in total.items()}

    def embed(self, words: Sequence[str | None], categories: Sequence[str | None]) -> Tensor:
        """The UNet's text condition (1 or n, L, D)."""
        if self.learned and all(word is None for word in words):
            return self.method.embed({"category": list(categories)})
        texts = [self.words if word is None else word for word in words]
        rows = {text: self.method.text.encode_text([text]) for text in dict.fromkeys(texts)}
        return torch.cat([rows[text] for text in texts])


class _Dino:
    """Maps of a vision transformer's layers."""

    image_size = (672, 672)

    def __init__(self, name: str, layers: Sequence[str], dtype: torch.dtype, device: torch.device) -> None:
        folders = {word: hub_id for hub_id, word in HUB_IDS.items()}
        self.model, self.mean, self.std = load_transformer(folders.get(name, name), dtype, device)
        known = name_layers(self.model)
        if unknown := [layer for layer in layers if layer not in known]:
            raise ValueError(f"{name} has no layer {', '.join(unknown)}; it has {', '.join(known)}")
        self.layers, self.stride = tuple(layers), self.model.config.patch_size
        self.image_size = tuple(side // self.stride * self.stride for side in self.image_size)

    def compute(self, pixels: Tensor, *_: Any) -> dict[str, Tensor]:
        maps = compute_layer_maps(self.model, (pixels - self.mean) / self.std, self.layers)
        return {layer: value.float() for layer, value in maps.items()}


def fit_pixels(pixels: Tensor, frame: Frame) -> Tensor:
    """Pixels (1, 3, H, W) in [0, 1] in a frame, (1, 3, H', W'); gradients go through. Bilinear, antialiased."""
    size = tuple(pixels.shape[-2:])
    corners = frame.to_px(torch.tensor([[0.0, 0.0], [size[1], size[0]]]), size)
    (x, y), (width, height) = corners[0].round().int().tolist(), (corners[1] - corners[0]).round().int().tolist()
    whole_h, whole_w = frame.image_size
    width, height = min(max(width, 1), whole_w - x), min(max(height, 1), whole_h - y)
    resized = F.interpolate(pixels, (height, width), mode="bilinear", align_corners=False, antialias=True)
    return F.pad(resized, (x, whole_w - x - width, y, whole_h - y - height))


def is_dino(name: str) -> bool:
    """Whether a name stands for a vision transformer rather than Stable Diffusion."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return (folder / "config.json").is_file()
    return name in VISION or "/" in name and "dinov" in name.rpartition("/")[2].lower()


def is_learned(prompt: str) -> bool:
    """Whether a prompt is a learned one's name or folder rather than words."""
    try:
        return Path(prompt).is_dir() if "/" in prompt else parse_prompt_name(prompt).kind not in BASELINES
    except ValueError:
        return False


def find_path(layer: str) -> str:
    """The name of a layer in model.backbone.diffusion; "up1.attentions.1.query" is that of its self-attention."""
    head, _, kind = layer.rpartition(".")
    return f"{head}.transformer_blocks.0.attn1.{_ATTENTION[kind]}" if head and kind in _ATTENTION else layer


def _as_map(value: Tensor, latent_size: Size) -> Tensor:
    """Tokens (n, h w, C) as a map (n, C, h, w); a map as it is."""
    if value.dim() == 4:
        return value
    stride = round((latent_size[0] * latent_size[1] / value.shape[1]) ** 0.5)
    return value.transpose(1, 2).unflatten(2, (latent_size[0] // stride, latent_size[1] // stride))


def _require_range(name: str, key: str, *values: int) -> None:
    """ValueError for an argument that is not what a key of the configuration may be."""
    low, high = RULES[key]
    if not all(low <= value <= high for value in values):
        raise ValueError(f"{name} must be in {low}..{high}; got {', '.join(map(str, values))}")


def _spread(value: Any, n: int) -> list:
    """One value for each of n images."""
    if value is None or isinstance(value, str):
        return [value] * n
    if len(value) != n:
        raise ValueError(f"{n} images, but {len(value)} prompts or categories")
    return list(value)
