"""A CLIP tokenizer without a download: the byte alphabet of CLIP's vocabulary and no merges."""

from __future__ import annotations

from transformers import CLIPTokenizer

SOS, EOS = "<|startoftext|>", "<|endoftext|>"


def build_byte_tokenizer(vocab_size: int, pad_token: str = "!", n_positions: int = 77) -> CLIPTokenizer:
    """CLIP tokenizer whose tokens are single bytes.

    Ids are those of CLIP's own vocabulary: 0..255 within a word, 256..511 at its end. SOS and EOS take the
    last two ids, vocab_size - 2 and vocab_size - 1 (49406 and 49407 for the released text models), so that
    every id fits the text model's embedding table. "!" is id 0, the padding of SD2-1. Raises ValueError below
    514 ids.
    """
    if vocab_size < 514:
        raise ValueError(f"a byte tokenizer needs a vocabulary of at least 514 ids, got {vocab_size}")
    letters = _byte_letters()
    vocab = {token: i for i, token in enumerate(letters + [letter + "</w>" for letter in letters])}
    vocab |= {SOS: vocab_size - 2, EOS: vocab_size - 1}
    return CLIPTokenizer(vocab=vocab, merges=[], pad_token=pad_token, model_max_length=n_positions)


def _byte_letters() -> list[str]:
    """Byte-level BPE's alphabet: printable Latin-1 first, for the other bytes characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(code) for code in printable] + [chr(0x100 + i) for i in range(256 - len(printable))]
