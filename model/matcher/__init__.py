"""Matchers by name: what maps a batch to feature maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.load import StableDiffusion
    from model.matcher.base import Matcher
    from model.prompt.base import Prompt

__all__ = ["MATCHERS", "build_matcher"]


def build_matcher(
    name: str,
    networks: StableDiffusion,  # all parts but the VAE; the UNet is cut in place
    prompt: Prompt,
    **settings: Any,  # of its constructor: layer, timestep, ensemble, posterior, max_rows, recompute
) -> Matcher:
    """The matcher of that name; ValueError lists the known ones."""
    if name not in MATCHERS:
        raise ValueError(f"unknown matcher {name!r}; known: {', '.join(sorted(MATCHERS))}")
    return MATCHERS[name](networks, prompt, **settings)


def _build_stable_diffusion(networks: StableDiffusion, prompt: Prompt, **settings: Any) -> Matcher:
    from model.matcher.stable_diffusion import StableDiffusionMatcher
    from model.text import PromptEncoder

    needed = ("unet", "scheduler", "text_encoder", "tokenizer")
    if missing := [part for part in needed if getattr(networks, part) is None]:
        raise ValueError(f"the stable_diffusion matcher needs networks loaded with the parts {', '.join(missing)}")
    text = PromptEncoder(networks.text_encoder, networks.tokenizer)
    settings = {"scaling_factor": networks.facts.scaling_factor, **settings}
    return StableDiffusionMatcher(networks.unet, networks.scheduler, text, prompt, **settings)


MATCHERS: dict[str, Callable[..., Any]] = {"stable_diffusion": _build_stable_diffusion}
