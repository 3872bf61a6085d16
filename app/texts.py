"""Which of some texts fits a photo: the best first, with both terms of their scores, and where its words look."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from app.photo import paint_heat, shrink, to_data_url
from app.session import RequestError
from utils.draw import TokenMaps, to_rgb

MAX_TEXTS, MAX_LENGTH = 10, 300  # texts, characters
SIDE = 150  # px of a map's longer side
_TERMS = {"attention": "attention", "noise": "gain in noise prediction"}
_NOTE = "Bars compare the texts of this image; a score by itself says nothing. Where the best text's words look:"


def split_texts(text: str) -> list[str]:
    """The lines that say something, each once."""
    texts = list(dict.fromkeys(line.strip() for line in str(text or "").splitlines() if line.strip()))
    if not texts:
        raise RequestError("Write what the image may show, one text a line.")
    if len(texts) > MAX_TEXTS or max(map(len, texts)) > MAX_LENGTH:
        raise RequestError(f"At most {MAX_TEXTS} texts of {MAX_LENGTH} characters.")
    return texts


def build_texts(scores: Any, texts: Sequence[str], words: TokenMaps) -> str:
    """HTML of the scores (sd4match.Scores) of one image, and of the maps of the words of the best text."""
    columns = {"score": scores.total, **scores.terms}
    head = "".join(f"<th>{escape(_TERMS.get(name, name))}</th>" for name in columns)
    rows = []
    for number in np.argsort(-scores.total[0]):
        cells = "".join(_build_cell(values[0], number) for values in columns.values())
        rows.append(f"<tr><td>{escape(texts[number])}</td>{cells}</tr>")
    table = f"<table><tr><th>text</th>{head}</tr>{''.join(rows)}</table>"
    figures = "".join(
        f'<figure><img src="{paint_map(words, number)}" alt=""><figcaption>{escape(name)}</figcaption></figure>'
        for number, name in [(None, "the image"), *enumerate(words.names)]
    )
    return f'{table}<p>{_NOTE}</p><div class="words">{figures}</div>'


def _build_cell(values: np.ndarray, number: int) -> str:
    """A score, and a bar that says where it lies between the lowest and the highest."""
    span = values.max() - values.min()
    share = (values[number] - values.min()) / span if span > 0 else 1
    return f'<td>{values[number]:.4f}<span class="meter" style="width:{max(2, 100 * share):.0f}%"></span></td>'


def paint_map(words: TokenMaps, number: int | None = None) -> str:
    """data: URL of the image, and over it the heat of one word in its own range."""
    height, width = words.size
    image = shrink(Image.fromarray(to_rgb(words.image)).resize((width, height)), SIDE)
    if number is not None:
        heat = paint_heat(words.maps[number].numpy()).resize(image.size)
        image = Image.alpha_composite(image.convert("RGBA"), heat).convert("RGB")
    return to_data_url(image)
