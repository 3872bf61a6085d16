"""Methods by name: ways to get similarities between two images, or scores of texts and images.

To add one, write its file and give it a line here.
The table imports nothing heavy: what a config may say is known without torch.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model.method.base import Method

__all__ = ["METHODS", "Entry", "find_method"]


@dataclass(frozen=True)
class Entry:
    """A method and what can be known of it before it is built."""

    where: str  # "module:class"
    reads: tuple[str, ...]  # what it reads of each image: names in model.source.SOURCES, besides its prompt's condition
    takes_prompt: bool = False  # whether it runs Stable Diffusion under a prompt
    learns: bool = False  # whether train.py has something to learn
    adds_noise: bool = False  # whether several noise draws can be averaged
    task: str = "correspondence"  # what it can be asked: a name in engine.task.TASKS
    section: str = ""  # of the config that is its own, if it has one
    takes_taps: bool = False  # whether it runs Stable Diffusion for FEATURES.TAPS
    runs_diffusion: bool = False  # whether it runs Stable Diffusion without reading its posteriors


METHODS: dict[str, Entry] = {
    "sd4match": Entry(
        "model.method.sd4match:SD4Match", ("posterior",), takes_prompt=True, learns=True, adds_noise=True
    ),
    "dift": Entry("model.method.dift:DIFT", ("posterior",), takes_prompt=True, adds_noise=True),
    "dinov2": Entry("model.method.dinov2:DINOv2", ("dino",)),
    "sd_dino": Entry(
        "model.method.sd_dino:SDDINO", ("posterior", "dino"), takes_prompt=True, learns=True, adds_noise=True
    ),
    "dsd": Entry("model.method.dsd:DSD", ("posterior",), learns=True, task="ranking", section="DSD"),
    "same_place": Entry("model.method.same_place:SamePlace", ()),
    "word_attention": Entry(
        "model.method.word_attention:WordAttention", ("posterior",), takes_prompt=True, section="LDM"
    ),
    "ldm_correspondence": Entry(
        "model.method.ldm_correspondence:LDMCorrespondence", ("image",), section="LDM", runs_diffusion=True
    ),
    "clip": Entry("model.method.clip:CLIPScore", ("clip",), task="ranking", section="DSD"),
    "cleandift": Entry("model.method.cleandift:CleanDIFT", ("posterior",), takes_prompt=True, learns=True),
    "geoaware": Entry("model.method.geoaware:GeoAware", ("layers", "dino"), learns=True, section="GEOAWARE"),
    "geoaware_prompt": Entry(
        "model.method.geoaware_prompt:GeoAwarePrompt",
        ("posterior", "dino"),
        takes_prompt=True,
        learns=True,
        adds_noise=True,
        section="GEOAWARE",
        takes_taps=True,
    ),
}


def find_method(name: str) -> type[Method]:
    """The class of a method; ValueError lists the known names."""
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; known: {', '.join(sorted(METHODS))}")
    module, _, kind = METHODS[name].where.partition(":")
    return getattr(importlib.import_module(module), kind)
