"""Which of some texts fits a photo: the best first, with both terms of their scores, and where its words look."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from matplotlib import colormaps
from PIL import Image

from app.photo import shrink, to_data_url
from utils.draw import TokenMaps

MAX_TEXTS, MAX_LENGTH = 10, 300  # texts, characters
SIDE = 150  # px of a map's longer side
_TERMS = {"attention": "attention", "noise": "gain in noise prediction"}
_BAR = '<span style="display:block;height:6px;width:{:.0f}%;background:var(--color-accent)"></span>'


class TextError(ValueError):
    """Texts that cannot be compared; the message is for the user."""


def split_texts(text: str) -> list[str]:
    """The lines that say something, each once."""
    texts = list(dict.fromkeys(line.strip() for line in str(text or "").splitlines() if line.strip()))
    if not texts:
        raise TextError("Write what the image may show, one text a line.")
    if len(texts) > MAX_TEXTS or max(map(len, texts)) > MAX_LENGTH:
        raise TextError(f"At most {MAX_TEXTS} texts of {MAX_LENGTH} characters.")
    return texts


def build_texts(scores: Any, texts: Sequence[str], words: TokenMaps) -> str:
    """HTML of the scores (sd4match.Scores) of one image, and of the maps of the words of the best text."""
    columns = {"score": scores.total, **scores.terms}
    head = "".join(f"<th>{escape(_TERMS.get(name, name))}</th>" for name in columns)
    rows = []
    for number in np.argsort(-scores.total[0]):
        cells = "".join(_build_cell(values[0], number) for values in columns.values())
        rows.append(f"<tr><td>{escape(texts[number])}</td>{cells}</tr>")
    table = f'<table style="width:100%"><tr><th>text</th>{head}</tr>{"".join(rows)}</table>'
    note = (
        "<p>Bars compare the texts of this image; a score by itself says nothing. Where the best text's words look:</p>"
    )
    figures = [_build_figure(paint_map(words, number), name) for number, name in enumerate(words.names)]
    return f'{table}{note}<div style="display:flex;flex-wrap:wrap;gap:8px">{"".join(figures)}</div>'


def _build_figure(url: str, name: str) -> str:
    return f'<figure style="margin:0"><img src="{url}" alt=""><figcaption>{escape(name)}</figcaption></figure>'


def _build_cell(values: np.ndarray, number: int) -> str:
    """A score, and a bar that says where it lies between the lowest and the highest."""
    span = values.max() - values.min()
    share = 100 * (values[number] - values.min()) / span if span > 0 else 100
    return f"<td>{values[number]:.4f}{_BAR.format(max(2.0, share))}</td>"


def paint_map(words: TokenMaps, number: int) -> str:
    """data: URL of the image under the heat of one word, in its own range."""
    pixels = ((words.image + 1) * 127.5).clamp(0, 255).byte().permute(1, 2, 0).numpy()
    height, width = words.size
    image = shrink(Image.fromarray(pixels).resize((width, height)), SIDE)
    heat = words.maps[number].numpy()
    heat = (heat - heat.min()) / max(heat.max() - heat.min(), 1e-12)
    colours = Image.fromarray(colormaps["viridis"](heat, bytes=True)[..., :3]).resize(image.size)
    return to_data_url(Image.blend(image, colours, 0.6))
