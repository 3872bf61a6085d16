"""Matchers by name: what maps a batch to feature maps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.backbone.load import StableDiffusion
    from model.method.base import Matcher
    from model.method.sd4match import SD4Match
    from model.prompt.base import Prompt

__all__ = ["METHODS", "MethodEntry", "build_method"]


@dataclass(frozen=True)
class MethodEntry:
    """A matcher and what it needs; everything that builds, checks or names one goes by this."""

    build: Callable[..., Any]  # (networks, prompt, **settings) -> Matcher
    caches: tuple[str, ...]  # arrays of each image that it reads, besides its prompt's condition
    parts: tuple[str, ...] = ()  # parts of Stable Diffusion that it runs; () = none, and no prompt either
    settings: tuple[str, ...] = ()  # names of its settings, see engine.build

    @property
    def takes_prompt(self) -> bool:
        return bool(self.parts)


def build_method(
    name: str,
    networks: StableDiffusion | None,  # all parts but the VAE; the UNet is cut in place; None if it runs no part
    prompt: Prompt | None,
    **settings: Any,  # of its constructor: layer, timestep, ensemble, posterior, max_rows, recompute, ...
) -> Matcher:
    """The matcher of that name; ValueError lists the known ones."""
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; known: {', '.join(sorted(METHODS))}")
    entry = METHODS[name]
    if missing := [part for part in entry.parts if getattr(networks, part, None) is None]:
        raise ValueError(f"the {name} matcher needs networks loaded with the parts {', '.join(missing)}")
    return entry.build(networks, prompt, **settings)


# The builders import their modules when called: the names and needs of matchers are known without torch.


def _build_stable_diffusion(networks: StableDiffusion, prompt: Prompt, **settings: Any) -> SD4Match:
    from model.method.sd4match import SD4Match

    return _build_diffusion(SD4Match, networks, prompt, settings)


def _build_cleandift(networks: StableDiffusion, prompt: Prompt, **settings: Any) -> SD4Match:
    from model.method.cleandift import CleanDIFT

    return _build_diffusion(CleanDIFT, networks, prompt, settings)


def _build_diffusion(
    kind: type[SD4Match], networks: StableDiffusion, prompt: Prompt, settings: dict[str, Any]
) -> SD4Match:
    from model.backbone.text import PromptEncoder

    text = PromptEncoder(networks.text_encoder, networks.tokenizer)
    settings = {"scaling_factor": networks.facts.scaling_factor, **settings}
    return kind(networks.unet, networks.scheduler, text, prompt, **settings)


def _build_dinov2(networks: None, prompt: None) -> Matcher:
    from model.method.dinov2 import DINOv2

    return DINOv2()


def _build_sd_dino(
    networks: StableDiffusion, prompt: Prompt, *, sd_weight: float = 0.5, dino_weight: float = 0.5, **settings: Any
) -> Matcher:
    from model.method.sd_dino import SDDINO

    diffusion = _build_stable_diffusion(networks, prompt, **settings)
    return SDDINO(diffusion, sd_weight=sd_weight, dino_weight=dino_weight)


_DIFFUSION = ("unet", "scheduler", "text_encoder", "tokenizer")
_SETTINGS = ("layer", "timestep", "ensemble", "posterior", "max_rows", "recompute")

METHODS: dict[str, MethodEntry] = {
    "sd4match": MethodEntry(_build_stable_diffusion, ("posterior",), _DIFFUSION, _SETTINGS),
    "dinov2": MethodEntry(_build_dinov2, ("dino",)),
    "sd_dino": MethodEntry(_build_sd_dino, ("posterior", "dino"), _DIFFUSION, (*_SETTINGS, "sd_weight", "dino_weight")),
    "cleandift": MethodEntry(
        _build_cleandift, ("posterior",), _DIFFUSION, tuple(name for name in _SETTINGS if name != "ensemble")
    ),
}
