"""Learnable and fixed prompts, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from model.prompt.name import PromptName, parse_prompt_name

if TYPE_CHECKING:
    from model.backbone.text import PromptEncoder
    from model.prompt.base import Prompt

__all__ = ["BUILDERS", "build_prompt"]

TEMPLATE = "a photo of a {category}"


def build_prompt(
    name: PromptName | str,  # a learned prompt's name, or "text", "empty"
    text: PromptEncoder,
    *,
    categories: Sequence[str] = (),  # of the data set; for Class and text prompts
    condition_shape: tuple[int, int]
    | None = None,  # (tokens, features) per image, see model.backbone.facts.condition_facts; for CPM
    init: str = "random",  # "random"; Single and Class also "empty" or "text:<a sentence>", Class with {category}
    seed: int = 0,  # of the start
    template: str = TEMPLATE,  # of the text prompt
    category_words: Callable[[str], str] = str,  # how the text prompt reads a category's name
) -> Prompt:
    """A new prompt, untrained, in float32 on the CPU. The same arguments give the same values."""
    name = parse_prompt_name(name) if isinstance(name, str) else name
    settings = {
        "categories": categories,
        "condition_shape": condition_shape,
        "init": init,
        "seed": seed,
        "template": template,
        "category_words": category_words,
    }
    return BUILDERS[name.method](name, text, settings)


# The builders import their modules when called: reading a prompt's name needs no torch.


def _build_text(name: PromptName, text: PromptEncoder, settings: dict) -> Prompt:
    from model.prompt.text_prompt import TextPrompt

    template = settings["template"] if name.method == "text" else ""
    return TextPrompt(template, text, settings["categories"], settings["category_words"])


def _build_simple(name: PromptName, text: PromptEncoder, settings: dict) -> Prompt:
    from model.prompt.simple import SimplePrompt, start_sequences

    keys = ("categories", "init", "seed", "category_words")
    return SimplePrompt(name, start_sequences(name, text, **{key: settings[key] for key in keys}))


def _build_cpm(name: PromptName, text: PromptEncoder, settings: dict) -> Prompt:
    from model.prompt.cpm import ConditionalPrompt
    from utils.noise import seeded

    if settings["init"] != "random":
        raise ValueError(f"{name} can only start at random; init {settings['init']!r} is for Single and Class prompts")
    if settings["condition_shape"] is None:
        raise ValueError(f"{name} needs condition_shape, the (tokens, features) of one image's {name.condition}")
    with seeded(settings["seed"]):
        return ConditionalPrompt(name, text, *settings["condition_shape"])


BUILDERS = {
    "text": _build_text,
    "empty": _build_text,
    "Single": _build_simple,
    "Class": _build_simple,
    "CPM": _build_cpm,
}
