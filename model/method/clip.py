"""CLIP: the cosine of an image's embedding with a text's, times 100; the baseline of rankings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from config import resolve_network
from model.backbone.clip import CLIP, load_clip
from model.method.base import Batch, Method


class CLIPScore(Method):
    """The images' embeddings are cached."""

    reads = ("clip",)

    def __init__(self, clip: CLIP) -> None:
        super().__init__()
        self.clip = clip

    @torch.no_grad()
    def rank(self, batch: Batch, seeds: Tensor) -> dict[str, Tensor]:
        images = batch["clip"].float()  # (B, I, D)
        texts = self.clip.embed_texts([text for row in batch["texts"] for text in row])
        cosines = texts.unflatten(0, (len(images), -1)) @ images.transpose(1, 2)  # (B, T, I)
        return {"score": 100 * cosines.flatten(1)}

    @classmethod
    def build(cls, cfg, device: torch.device, categories: Sequence[str] | None, training: bool, folder=None):
        return cls(load_clip(resolve_network(cfg.DSD.CLIP_FOLDER), device))
