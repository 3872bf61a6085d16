"""The frozen CLIP text transformer: from words, ids or free token embeddings to the UNet's text condition."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from model.error import PromptError


class PromptEncoder(nn.Module):
    """Frozen text model and tokenizer of a Stable Diffusion model. D = `width`, L = `n_positions` (77)."""

    def __init__(self, text_model: CLIPTextModel, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.text_model = text_model.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.width: int = text_model.config.hidden_size
        self.n_positions: int = text_model.config.max_position_embeddings
        self.vocab_size: int = text_model.config.vocab_size
        largest = max(tokenizer.bos_token_id, tokenizer.eos_token_id)
        if largest >= self.vocab_size:
            raise ValueError(f"the tokenizer's id {largest} does not fit the text model's {self.vocab_size} embeddings")

    @property
    def dtype(self) -> torch.dtype:
        return self.text_model.dtype

    @property
    def device(self) -> torch.device:
        return self.text_model.device

    def train(self, mode: bool = True) -> PromptEncoder:
        """Frozen: stays in evaluation mode."""
        return super().train(False)

    def token_ids(self, texts: Sequence[str], truncate: bool = False) -> Tensor:
        """Ids (n, L): SOS, the words, EOS, padding. A text longer than the sequence is cut, or a PromptError."""
        return find_ids(self.tokenizer, texts, self.n_positions, truncate).to(self.device)

    @torch.no_grad()
    def embed_ids(self, ids: Tensor) -> Tensor:
        """Token plus position embeddings (n, L, D) of ids (n, L): what enters the text transformer."""
        return self.embeddings(input_ids=ids.to(self.device))

    @torch.no_grad()
    def special_embeddings(self, n_learnable: int) -> tuple[Tensor, Tensor, Tensor]:
        """SOS (1, 1, D), EOS (1, 1, D) and padding (1, L - 2 - n, D), token + position embeddings at their
        places.

        The learnable slots take positions 1..n, EOS position n + 1, and id 0 fills the rest. ValueError if n
        does not fit.
        """
        if not 1 <= n_learnable <= self.n_positions - 2:
            raise ValueError(f"learnable tokens must be in 1..{self.n_positions - 2}, got {n_learnable}")
        ids = torch.zeros(1, self.n_positions, dtype=torch.long)
        ids[0, 0], ids[0, n_learnable + 1] = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        embeds = self.embed_ids(ids)
        return embeds[:, :1], embeds[:, n_learnable + 1 : n_learnable + 2], embeds[:, n_learnable + 2 :]

    @torch.no_grad()
    def encode_ids(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Last hidden state (n, L, D), after the final layer norm, of ids (n, L); mask (n, L): tokens that are seen."""
        mask = None if mask is None else mask.long().to(self.device)
        return self.text_model(input_ids=ids.to(self.device), attention_mask=mask).last_hidden_state

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Last hidden state (n, L, D) of n texts."""
        return self.encode_ids(self.token_ids(texts))

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """Last hidden state (P, L, D) of given embeddings (P, L, D); gradients reach `tokens`.

        The stock text model runs (causal mask, final layer norm) with its embedding layer's output replaced
        by `tokens`.
        """
        if tokens.shape[1:] != (self.n_positions, self.width):
            raise ValueError(f"tokens must be (P, {self.n_positions}, {self.width}), got {tuple(tokens.shape)}")
        tokens = tokens.to(device=self.device, dtype=self.dtype)
        unused_ids = torch.zeros(tokens.shape[:2], dtype=torch.long, device=self.device)
        handle = self.embeddings.register_forward_hook(lambda *_: tokens)
        try:
            return self.text_model(input_ids=unused_ids).last_hidden_state
        finally:
            handle.remove()

    @property
    def embeddings(self) -> nn.Module:
        """The text model's embedding layer."""
        return self.text_model.embeddings


def find_ids(tokenizer: CLIPTokenizer, texts: Sequence[str], n_positions: int, truncate: bool = False) -> Tensor:
    """Ids (n, n_positions) of n texts, on the CPU; see `PromptEncoder.token_ids`."""
    ids = tokenizer(list(texts), padding="max_length", max_length=n_positions, truncation=truncate).input_ids
    for text, row in zip(texts, ids, strict=True):
        if len(row) > n_positions:
            start = textwrap.shorten(text, 60, placeholder="...")
            raise PromptError(f"the text {start!r} has {len(row) - 2} tokens; at most {n_positions - 2} fit")
    return torch.tensor(ids).reshape(len(ids), n_positions)


def build_byte_tokenizer(vocab_size: int, pad_token: str = "!", n_positions: int = 77) -> CLIPTokenizer:
    """CLIP tokenizer without a download: its tokens are single bytes, and nothing is merged.

    Ids are those of CLIP's own vocabulary: 0..255 within a word ("!" is 0, the padding of SD2-1), 256..511 at its end.
    SOS and EOS take the last two ids (49406 and 49407 for the released text models). ValueError below 514 ids.
    """
    if vocab_size < 514:
        raise ValueError(f"a byte tokenizer needs a vocabulary of at least 514 ids, got {vocab_size}")
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]  # byte-level BPE's alphabet
    letters = [chr(code) for code in printable] + [chr(0x100 + i) for i in range(256 - len(printable))]
    vocab = {token: i for i, token in enumerate(letters + [letter + "</w>" for letter in letters])}
    vocab |= {"<|startoftext|>": vocab_size - 2, "<|endoftext|>": vocab_size - 1}
    return CLIPTokenizer(vocab=vocab, merges=[], pad_token=pad_token, model_max_length=n_positions)
