"""From the config to the prompt that is learned or tested, and to the networks that it runs on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from config import ConfigError, resolve_path
from model.backbone.device import resolve_dtype, speed_up
from model.backbone.load import StableDiffusion
from model.backbone.text import PromptEncoder
from model.error import NetworkError, NetworkNotFoundError
from model.method import METHODS
from model.prompt import new_prompt
from model.prompt.base import Prompt
from model.prompt.name import BASELINES, PromptName, format_prompt, parse_prompt_name
from model.prompt.store import load_prompt, read_prompt
from model.prompt.text_prompt import OpenTextPrompt
from model.source import condition_source, fingerprint_stable_diffusion, load_parts

PARTS = ("unet", "scheduler", "text_encoder", "tokenizer")  # of Stable Diffusion, that run under a prompt


def name_trained(cfg) -> PromptName:
    """The name of the prompt that the config trains."""
    section = cfg.PROMPT
    variants = {"TokenEmbeds": f"TokenEmbeds{section.LENGTH}", "HiddenState": "HiddenState"}
    variant = section.CPM if section.KIND == "CPM" else variants[section.SPACE]
    return format_prompt(section.KIND, cfg.DATASET.NAME, cfg.NETWORK.NAME, variant)


def build_prompt(cfg, categories: Sequence[str] | None, training: bool, folder: str | Path | None = None) -> Prompt:
    """The prompt to be trained, at its start; or the one that PROMPT.TYPE names.

    categories: of the data set; None: the text prompt takes any category, or none. folder: of a learned prompt, if it
    is not below OUTPUT_ROOT.
    """
    name = name_trained(cfg) if training else parse_prompt_name(cfg.PROMPT.TYPE)
    if training or (name.kind in BASELINES and not (categories is None and name.kind == "text")):
        return _build_fresh(cfg, name, categories or ())
    if name.kind == "text":
        return OpenTextPrompt(cfg.PROMPT.TEMPLATE, cfg.PROMPT.WITHOUT_CATEGORY, load_text(cfg))
    folder = folder or Path(resolve_path(cfg.OUTPUT_ROOT)) / "prompt" / cfg.PROMPT.TYPE
    read_prompt(folder, str(name))  # damaged or misnamed files are told before the text model is loaded
    return load_prompt(
        folder,
        text=load_text(cfg),
        backbone=cfg.NETWORK.NAME,
        categories=categories or (),
        condition_shape=_condition_shape(cfg, name),
        setting=_find_setting(cfg, name),
        name=str(name),
    )


def load_text(cfg) -> PromptEncoder:
    """The text transformer on the CPU in float32: what prompts start from."""
    networks = load_parts(cfg, ("text_encoder", "tokenizer"))
    return PromptEncoder(networks.text_encoder, networks.tokenizer)


def load_diffusion(cfg, device: torch.device) -> StableDiffusion:
    """What features under a prompt need: UNet, scheduler, text model and tokenizer, frozen, in PRECISION."""
    networks = load_parts(cfg, PARTS, device, resolve_dtype(cfg.PRECISION, device))
    speed_up(networks.unet, cfg.NETWORK.MEMORY_FORMAT, cfg.NETWORK.COMPILE)
    return networks


def fingerprint_diffusion(cfg) -> str:
    """Hash of all of the networks that features under a prompt come from."""
    return fingerprint_stable_diffusion(cfg, ("vae", *PARTS))


def _find_setting(cfg, name: PromptName) -> dict[str, Any]:
    """What must be as it was when a prompt was learned, as entries of engine.identity.what_makes_weights."""
    kept = () if METHODS[cfg.METHOD.NAME].takes_taps else ("NAME", "LAYER", "POSTERIOR")  # it reads other layers anyhow
    setting = {f"METHOD.{key}": cfg.METHOD[key] for key in kept}
    setting["networks"] = fingerprint_diffusion(cfg)
    if name.condition:
        setting["condition"] = condition_source(cfg, name.condition).stamp
    return setting


def _build_fresh(cfg, name: PromptName, categories: Sequence[str]) -> Prompt:
    try:
        return new_prompt(
            name,
            load_text(cfg),
            categories=categories,
            condition_shape=_condition_shape(cfg, name),
            init=cfg.PROMPT.INIT,
            seed=cfg.SEED,
            template=cfg.PROMPT.TEMPLATE,
        )
    except (NetworkError, NetworkNotFoundError):
        raise
    except ValueError as error:  # such as a PROMPT.INIT with more words than PROMPT.LENGTH
        raise ConfigError(f"PROMPT: {error}") from error


def _condition_shape(cfg, name: PromptName) -> tuple[int, int] | None:
    return condition_source(cfg, name.condition).shape if name.condition else None
