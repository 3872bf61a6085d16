"""The frozen networks, from ordinary diffusers / transformers folders or hub ids, or with random weights."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from types import MethodType
from typing import Any

import torch
import transformers
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from einops import rearrange
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
)

from model.backbone.architecture import STABLE_DIFFUSION, VISION, default_hub_id, get_architecture
from model.backbone.device import check_weights, resolve_device, resolve_dtype
from model.backbone.facts import (
    CONDITION_ARCHITECTURE,
    NetworkFacts,
    compute_facts,
    differing_unet_entries,
    split_hub_file,
)
from model.backbone.source import CONFIG_FILE, NetworkSource
from model.backbone.tokenizer import build_byte_tokenizer
from model.error import NetworkError
from utils.noise import seeded

__all__ = [
    "PARTS",
    "StableDiffusion",
    "VisionNetwork",
    "freeze",
    "load_stable_diffusion",
    "load_vision",
    "resolve_device",
    "resolve_dtype",
]

PARTS = ("vae", "unet", "text_encoder", "tokenizer", "scheduler")

_WITHDRAWN = (
    "stabilityai/stable-diffusion-2-1, the original of SD2-1, was withdrawn by its owner in November 2025; "
    f"{default_hub_id('sd2-1')} holds the same files."
)


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
    attention: str = "sdpa",  # "sdpa" (PyTorch's fused attention) or "xformers"
    seed: int = 0,  # of the random weights
    unet: str = "",  # a UNet in place of the folder's: folder, .safetensors file, hub id or owner/name/file.safetensors
) -> StableDiffusion:
    """Load and freeze the parts of a Stable Diffusion model; only safetensors files are read.

    Raises NetworkNotFoundError (nothing there, or the download failed) or NetworkError (files incomplete or
    unreadable).
    """
    if unknown := set(parts) - set(PARTS):
        raise ValueError(f"unknown parts {sorted(unknown)}; known: {', '.join(PARTS)}")
    if init == "random":
        networks = _random_stable_diffusion(get_architecture(STABLE_DIFFUSION, architecture), parts, seed)
    elif init == "pretrained":
        networks = _pretrained_stable_diffusion(folder or default_hub_id(architecture), parts, dtype, unet)
    else:
        raise ValueError(f'init must be "pretrained" or "random", got {init!r}')
    for part in ("vae", "unet", "text_encoder"):
        if (module := getattr(networks, part)) is not None:
            freeze(module, dtype, device)
            check_weights(module, f"{part} of {unet if unet and part == 'unet' else folder or architecture}")
    _set_attention(networks.unet, attention)
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
    if positions not in ("scale", "size"):
        raise ValueError(f'positions must be "scale" or "size", got {positions!r}')
    if network not in CONDITION_ARCHITECTURE:
        raise ValueError(f"network must be one of {', '.join(CONDITION_ARCHITECTURE)}; got {network!r}")
    architecture = architecture or CONDITION_ARCHITECTURE[network]
    if init == "random":
        loaded = _random_vision(network, get_architecture(VISION, architecture), seed)
    elif init == "pretrained":
        source = NetworkSource(folder or default_hub_id(architecture), key or f"CONDITION.{network}_FOLDER")
        loaded = _pretrained_vision(network, source, dtype)
    else:
        raise ValueError(f'init must be "pretrained" or "random", got {init!r}')
    freeze(loaded.model, dtype, device)
    check_weights(loaded.model, folder or architecture)
    if network == "DINO" and positions == "scale":
        embeddings = loaded.model.embeddings
        embeddings.interpolate_pos_encoding = MethodType(_stretch_by_scale, embeddings)
    return loaded


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


def freeze(module: nn.Module, dtype: torch.dtype, device: torch.device | str) -> nn.Module:
    """No gradients, evaluation mode, cast to `dtype` on `device`; in place."""
    # not diffusers' own `to`: it warns about modules it would keep in float32, of which these have none
    return nn.Module.to(module.requires_grad_(False).eval(), device=device, dtype=dtype)


def _pretrained_stable_diffusion(folder: str, parts: Sequence[str], dtype: torch.dtype, unet: str) -> StableDiffusion:
    source = NetworkSource(folder, "NETWORK.FOLDER", _WITHDRAWN)
    source.require([f"{part}/{CONFIG_FILE.get(part, 'config.json')}" for part in {*parts, *_CONFIGS}])
    configs = {part: source.attempt(partial(load, subfolder=part)) for part, load in _CONFIGS.items()}
    facts = compute_facts(configs)
    loaded = {part: _load_part(source, part, dtype) for part in parts if not (part == "unet" and unet)}
    if unet and "unet" in parts:
        loaded["unet"] = _load_other_unet(NetworkSource(unet, "NETWORK.UNET"), configs["unet"], facts, dtype)
    return StableDiffusion(facts=facts, **loaded)


# Every part's configuration is fetched, whichever weights are asked for: model.backbone.facts reads them from disk.
_CONFIGS = {
    "vae": AutoencoderKL.load_config,
    "unet": UNet2DConditionModel.load_config,
    "text_encoder": lambda where, subfolder: CLIPTextConfig.get_config_dict(where, subfolder=subfolder)[0],
    "scheduler": DDIMScheduler.load_config,
}


def _load_part(source: NetworkSource, part: str, dtype: torch.dtype) -> Any:
    if part == "scheduler":  # the forward process only: any scheduler's betas serve
        return source.attempt(lambda where: DDIMScheduler.from_pretrained(where, subfolder="scheduler"))
    if part == "tokenizer":
        return _check_tokenizer(
            source.attempt(lambda where: CLIPTokenizer.from_pretrained(where, subfolder="tokenizer")), source
        )
    if part == "text_encoder":
        return source.load(CLIPTextModel, subfolder=part, dtype=dtype)
    return source.load({"vae": AutoencoderKL, "unet": UNet2DConditionModel}[part], subfolder=part, torch_dtype=dtype)


def _load_other_unet(
    source: NetworkSource, config: dict[str, Any], facts: NetworkFacts, dtype: torch.dtype
) -> UNet2DConditionModel:
    """The UNet of a folder or hub id, or of a weight file for the architecture of `config`."""
    hub_file = split_hub_file(source.folder)
    if hub_file is None and not source.path.is_file():
        source.require(["config.json"])
        unet = source.load(UNet2DConditionModel, torch_dtype=dtype)
        if wrong := differing_unet_entries(unet.config, facts):
            raise NetworkError(source.explain(f"it does not fit the network in NETWORK.FOLDER: {'; '.join(wrong)}"))
        return unet
    tensors = source.attempt(lambda where: load_file(hf_hub_download(*hub_file) if hub_file else where))
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    try:
        unet.load_state_dict({key: value.to(dtype) for key, value in tensors.items()}, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise NetworkError(source.explain(f"it does not fit the UNet of NETWORK.FOLDER ({reason})")) from error
    return unet


def _check_tokenizer(tokenizer: CLIPTokenizer, source: NetworkSource) -> CLIPTokenizer:
    """The library answers a missing vocabulary with an empty tokenizer instead of an error."""
    if len(tokenizer) < 256:
        raise NetworkError(source.explain("its tokenizer folder holds no vocabulary"))
    return tokenizer


def _random_stable_diffusion(configs: dict[str, dict], parts: Sequence[str], seed: int) -> StableDiffusion:
    networks = StableDiffusion(compute_facts(configs))
    with seeded(seed):
        if "vae" in parts:
            networks.vae = AutoencoderKL(**configs["vae"])
    with seeded(seed):
        if "unet" in parts:
            networks.unet = UNet2DConditionModel(**configs["unet"])
    with seeded(seed):
        if "text_encoder" in parts:
            networks.text_encoder = CLIPTextModel(CLIPTextConfig(**configs["text_encoder"]))
    if "tokenizer" in parts:
        networks.tokenizer = build_byte_tokenizer(configs["text_encoder"]["vocab_size"], **configs["tokenizer"])
    if "scheduler" in parts:
        networks.scheduler = DDIMScheduler(**configs["scheduler"])
    return networks


def _pretrained_vision(network: str, source: NetworkSource, dtype: torch.dtype) -> VisionNetwork:
    source.require(["config.json", "preprocessor_config.json"])
    # PIL's resampling is what the networks were used with when the prompts were trained
    processor = source.attempt(lambda where: AutoImageProcessor.from_pretrained(where, backend="pil"))
    if network == "DINO":
        return VisionNetwork(source.load(Dinov2Model, dtype=dtype), processor)
    config = source.attempt(_clip_vision_config)
    return VisionNetwork(source.load(CLIPVisionModelWithProjection, config=config, dtype=dtype), processor)


def _clip_vision_config(where: str) -> CLIPVisionConfig:
    """Vision half of a CLIP config; a whole CLIP model keeps the true projection width one level up."""
    whole, _ = CLIPVisionConfig.get_config_dict(where)
    config = CLIPVisionConfig.from_pretrained(where)
    if "vision_config" in whole:
        config.projection_dim = whole.get("projection_dim", config.projection_dim)
    return config


def _random_vision(network: str, configs: dict[str, dict], seed: int) -> VisionNetwork:
    values = {key: value for key, value in configs["config"].items() if key != "model_type"}
    with seeded(seed):
        model = (
            Dinov2Model(Dinov2Config(**values))
            if network == "DINO"
            else CLIPVisionModelWithProjection(CLIPVisionConfig(**values))
        )
    return VisionNetwork(model, build_processor(configs["preprocessor"]))


def build_processor(preprocessor: dict[str, Any]) -> Any:
    """The image processor that a preprocessor_config.json describes, with PIL's resampling."""
    values = dict(preprocessor)
    return getattr(transformers, values.pop("image_processor_type") + "Pil")(**values)


def _set_attention(unet: UNet2DConditionModel | None, attention: str) -> None:
    """diffusers uses PyTorch's fused attention unless told otherwise."""
    if attention not in ("sdpa", "xformers"):
        raise ValueError(f"attention must be sdpa or xformers, got {attention!r}")
    if attention == "xformers" and unet is not None:
        if importlib.util.find_spec("xformers") is None:
            raise ValueError("NETWORK.ATTENTION xformers needs the package xformers; install it or use sdpa")
        unet.enable_xformers_memory_efficient_attention()
