"""Prompts in words: "a photo of a {category}", or nothing at all."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from model.backbone.text import PromptEncoder, find_ids
from model.prompt.base import Prompt, index_categories
from model.prompt.name import PromptName


def category_word(name: str) -> str:
    """The category as a word for a prompt: car(G) -> car, winebottle(woC) -> winebottle; other names stay."""
    return re.sub(r"\([^()]*\)$", "", name)


def fill_template(template: str, category: str | None, without: str = "") -> str:
    """What is said of an image; without: of one that has no category, if the template has the field {category}."""
    if "{category}" not in template:
        return template
    return without if category is None else template.replace("{category}", category_word(category))


def build(name: PromptName, text: PromptEncoder, *, categories, template, **_: Any) -> TextPrompt:
    """See model.prompt.new_prompt."""
    return TextPrompt(template if name.kind == "text" else "", text, categories)


class TextPrompt(Prompt):
    """A sentence, fixed: no parameters. With the field {category} there is one sentence per category."""

    def __init__(
        self,
        template: str,  # such as "a photo of a {category}"; "" is the empty prompt
        text: PromptEncoder,
        categories: Sequence[str] = (),  # needed if the template has the field {category}
    ) -> None:
        super().__init__(PromptName("text" if template else "empty"))
        self.depends_on = "category" if "{category}" in template else "nothing"
        if self.depends_on == "category" and not categories:
            raise ValueError(f"the text prompt {template!r} needs the data set's categories")
        self._index = {category: i for i, category in enumerate(categories)}
        rows = self._index if self.depends_on == "category" else [None]
        ids = text.token_ids([fill_template(template, category) for category in rows])
        self.register_buffer("tokens", text.embed_ids(ids).float().cpu(), persistent=False)

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        if self.depends_on == "nothing":
            return self.tokens
        return self.tokens[index_categories(batch, self._index, "the text prompt")]


class OpenTextPrompt(Prompt):
    """A sentence for any category, also one that no data set has, and for none: embedded when it is asked for."""

    depends_on = "category"

    def __init__(
        self,
        template: str,  # such as "a photo of a {category}"
        without: str,  # the sentence for the category None
        text: PromptEncoder,
    ) -> None:
        super().__init__(PromptName("text"))
        self.template = template
        self.without = without
        self._tokenizer, self._n_positions = text.tokenizer, text.n_positions
        # no submodule: it stays where it is, in float32; the transformer, a GB and more, is let go
        self._embeddings = (text.embeddings,)

    def sentence(self, category: str | None) -> str:
        """What is said of an image of this category."""
        return fill_template(self.template, category, self.without)

    def find_ids(self, categories: Sequence[str | None]) -> Tensor:
        """Token ids (n, L) of the sentences of n categories; ValueError if one is too long."""
        return find_ids(self._tokenizer, [self.sentence(category) for category in categories], self._n_positions)

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        (embeddings,) = self._embeddings
        return embeddings(input_ids=self.find_ids(batch["category"])).float()
