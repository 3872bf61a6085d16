"""A small byte-level BPE vocabulary for CLIP's tokenizer, learned on drawn captions."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

SOS, EOS, PAD = "<|startoftext|>", "<|endoftext|>", "!"  # "!" has id 0, the padding of Stable Diffusion 2
POSITIONS = 77
VOCABULARY_FILES = ("vocab.json", "merges.txt")
END_OF_WORD = "</w>"


def learn_merges(words: Counter) -> list[tuple[str, str]]:
    """Merge the most frequent neighbouring symbols until every word is one token (ties: alphabetical)."""
    split = {word: [*word[:-1], word[-1] + END_OF_WORD] for word in words}
    merges = []
    while True:
        pairs = Counter()
        for word, symbols in split.items():
            for pair in zip(symbols, symbols[1:], strict=False):
                pairs[pair] += words[word]
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        split = {word: _merge(symbols, best) for word, symbols in split.items()}


def _merge(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    merged = []
    for symbol in symbols:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return merged


def build_tokenizer(captions: Iterable[str], folder: Path) -> CLIPTokenizer:
    """Learn a vocabulary in which every word of `captions` is one token and write it to `folder`."""
    words = Counter(word for text in captions for word in text.replace(",", " , ").split())
    merges = learn_merges(words)
    letters = list(bytes_to_unicode().values())
    symbols = letters + [letter + END_OF_WORD for letter in letters] + ["".join(pair) for pair in merges]
    vocabulary = {symbol: i for i, symbol in enumerate([*dict.fromkeys(symbols), SOS, EOS])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges), ""]))
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=PAD, model_max_length=POSITIONS)
    tokenizer.save_pretrained(folder)
    return tokenizer


def tokenize(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> torch.Tensor:
    """Return padded token ids (n, 77)."""
    options = {"padding": "max_length", "max_length": POSITIONS, "truncation": True, "return_tensors": "pt"}
    return tokenizer(list(texts), **options).input_ids
