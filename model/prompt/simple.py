"""SD4Match-Single and SD4Match-Class: free prompt embeddings, one for all images or one per category."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from model.backbone.text import PromptEncoder
from model.prompt.base import Prompt, index_categories
from model.prompt.name import MAX_TOKENS, PromptName
from model.prompt.text_prompt import category_word
from utils.noise import seeded

SINGLE_KEY = "dataset"  # the one row of a Single prompt, as its file calls it


class SimplePrompt(Prompt):
    """K whole sequences (K, L, D), of which positions 1..n (token space) or all (hidden space) are learned.

    The other positions are kept exactly as given, so that a loaded sequence is reproduced bit for bit.
    """

    def __init__(self, name: PromptName, sequences: Mapping[str, Tensor]) -> None:
        """sequences: (L, D) for each category of a Class prompt, or for "dataset" alone (Single)."""
        super().__init__(name)
        self.space = name.space
        self.depends_on = "category" if name.kind == "Class" else "nothing"
        self.rows = tuple(sequences)
        self._index = {row: i for i, row in enumerate(self.rows)}
        values = torch.stack([sequence.detach().float() for sequence in sequences.values()])
        first = 1 if name.space == "token" else 0
        learned = values[:, first : first + name.n_tokens]
        # One parameter per row, as in the release: the optimiser leaves a row alone whose category is not in the batch.
        self.tokens = nn.ParameterList([nn.Parameter(row.clone()) for row in learned])  # (n, D) each
        self.register_buffer("head", values[:, :first].clone(), persistent=False)
        self.register_buffer("tail", values[:, first + name.n_tokens :].clone(), persistent=False)

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        if self.depends_on == "nothing":
            return self.sequences()
        return self.sequences(index_categories(batch, self._index, str(self.name)))

    def to_tensors(self) -> dict[str, Tensor]:
        sequences = self.sequences().detach().cpu()
        return {row: sequences[i : i + 1].clone() for i, row in enumerate(self.rows)}

    def sequences(self, rows: Sequence[int] | None = None) -> Tensor:
        """Sequences (R, L, D) of some rows, or of all."""
        rows = range(len(self.rows)) if rows is None else rows
        return torch.stack([torch.cat([self.head[row], self.tokens[row], self.tail[row]]) for row in rows])


def build(name: PromptName, text: PromptEncoder, *, categories, init, seed, **_: Any) -> SimplePrompt:
    """See model.prompt.new_prompt."""
    return SimplePrompt(name, start_sequences(name, text, categories, init, seed))


def check(name: PromptName, tensors: Mapping[str, Tensor]) -> None:
    """ValueError for tensors of a file that are not whole sequences, or of another kind than the name's."""
    if not tensors or (name.kind == "Single") != (set(tensors) == {SINGLE_KEY}):
        raise ValueError(f"named as a {name.kind} prompt, but its file holds: {', '.join(sorted(tensors))}")
    width = max((value.shape[-1] for value in tensors.values() if value.ndim), default=0)
    for key, value in tensors.items():
        if tuple(value.shape) != (1, MAX_TOKENS + 2, width):
            raise ValueError(f"{key!r} is {tuple(value.shape)}, expected (1, {MAX_TOKENS + 2}, {width})")


def restore(
    name: PromptName, tensors: Mapping[str, Tensor], text: PromptEncoder, categories: Sequence[str], _: Any
) -> SimplePrompt:
    """The prompt of a file's tensors; ValueError if the text model or the categories are others."""
    for key, value in tensors.items():
        if tuple(value.shape) != (1, text.n_positions, text.width):
            raise ValueError(
                f"{key!r} is {tuple(value.shape)}, but this backbone takes (1, {text.n_positions}, {text.width}); "
                "the prompt belongs to another Stable Diffusion version"
            )
    if missing := sorted(set(categories) - set(tensors)) if name.kind == "Class" else []:
        raise ValueError(f"no prompt for {', '.join(missing)}; it has: {', '.join(sorted(tensors))}")
    return SimplePrompt(name, {key: tensors[key][0] for key in sorted(tensors)})


def start_sequences(
    name: PromptName, text: PromptEncoder, categories: Sequence[str], init: str, seed: int
) -> dict[str, Tensor]:
    """First values (L, D) of a Single or Class prompt's sequences.

    init: "random" (token space: embeddings of random vocabulary ids, position embedding included; hidden
    space: uniform in [0, 1)), "empty" (the empty string's embeddings or hidden state) or "text:<sentence>"
    (the sentence's; slots after it as the tokenizer pads them). Each row of a Class prompt has its own random
    start, and its own category in place of the sentence's {category}.
    """
    rows = sorted(categories) if name.kind == "Class" else [SINGLE_KEY]
    if not rows:
        raise ValueError(f"{name} needs the data set's categories")
    if init == "random" and name.space == "hidden":
        with seeded(seed):
            values = torch.rand(len(rows), text.n_positions, text.width)
    elif init == "random":
        ids = torch.randint(
            text.vocab_size, (len(rows), text.n_positions), generator=torch.Generator().manual_seed(seed)
        )
        values = _frame(text.embed_ids(ids), name.n_tokens, text)
    else:
        values = _written(_sentences(init, name, [category_word(row) for row in rows]), name, text)
    return {row: value.clone() for row, value in zip(rows, values.float().cpu(), strict=True)}


def _sentences(init: str, name: PromptName, words: Sequence[str]) -> list[str]:
    """The sentence that each row of a prompt starts from."""
    sentence = init.partition(":")[2]
    if "{category}" in sentence and name.kind != "Class":
        raise ValueError(f"prompt init {init!r}: only a Class prompt has a row for each {{category}}")
    return [sentence.replace("{category}", word) for word in words]


def _written(sentences: Sequence[str], name: PromptName, text: PromptEncoder) -> Tensor:
    """The sentences' hidden states, or their embeddings in the learnable slots, (K, L, D)."""
    if name.space == "hidden":
        return text.encode_text(sentences)
    ids = text.token_ids(sentences)
    for sentence, row in zip(sentences, ids.tolist(), strict=True):
        if (n_words := row.index(text.tokenizer.eos_token_id, 1) - 1) > name.n_tokens:
            raise ValueError(f"{sentence!r} has {n_words} tokens, but {name} has only {name.n_tokens} learnable ones")
    return _frame(text.embed_ids(ids), name.n_tokens, text)


def _frame(embeds: Tensor, n_tokens: int, text: PromptEncoder) -> Tensor:
    """Embeddings (K, L, D) with SOS, EOS and padding around slots 1..n."""
    n_rows = len(embeds)
    sos, eos, padding = (part.expand(n_rows, -1, -1) for part in text.special_embeddings(n_tokens))
    return torch.cat([sos, embeds[:, 1 : 1 + n_tokens], eos, padding], dim=1)
