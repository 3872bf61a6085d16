"""Prompts by kind. To add one, write its file and give it a line in KINDS, in name.py."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from model.prompt.name import BASELINES, KINDS, PromptName, parse_prompt_name

if TYPE_CHECKING:
    from model.backbone.text import PromptEncoder
    from model.prompt.base import Prompt

__all__ = ["KINDS", "new_prompt"]


def new_prompt(
    name: PromptName | str,
    text: PromptEncoder,
    *,
    categories: Sequence[str] = (),  # of the data set; for Class and text prompts
    condition_shape: tuple[int, int] | None = None,  # (tokens, features) of one image's condition; for CPM
    init: str = "random",  # "random"; Single and Class also "empty" or "text:<a sentence>", Class with {category}
    seed: int = 0,  # of the start
    template: str = "a photo of a {category}",  # of the text prompt
) -> Prompt:
    """A prompt, untrained, in float32 on the CPU. The same arguments give the same values."""
    name = parse_prompt_name(name) if isinstance(name, str) else name
    return importlib.import_module((KINDS | BASELINES)[name.kind]).build(
        name,
        text,
        categories=categories,
        condition_shape=condition_shape,
        init=init,
        seed=seed,
        template=template,
    )
