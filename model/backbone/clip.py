"""CLIP with both towers: embeddings of images and of texts whose cosine says how well they fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoImageProcessor, CLIPModel, CLIPTokenizer

from model.backbone.load import freeze
from model.backbone.source import NetworkSource
from model.backbone.text import find_ids

KEY = "DSD.CLIP_FOLDER"
_FILES = ("config.json", "preprocessor_config.json", "tokenizer_config.json")


@dataclass(frozen=True, eq=False)
class CLIP:
    """The frozen network, float32, with what prepares its inputs."""

    model: CLIPModel
    processor: Any
    tokenizer: CLIPTokenizer

    @torch.no_grad()
    def embed_images(self, images: Sequence[Image]) -> Tensor:
        """(n, D) of length 1, of RGB images."""
        pixels = self.processor(images=list(images), return_tensors="pt").pixel_values.to(self.model.device)
        return F.normalize(self.model.visual_projection(self.model.vision_model(pixels).pooler_output), dim=-1)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """(n, D) of length 1; texts are cut where the network ends."""
        ids = find_ids(self.tokenizer, texts, self.model.config.text_config.max_position_embeddings, truncate=True)
        pooled = self.model.text_model(input_ids=ids.to(self.model.device)).pooler_output
        return F.normalize(self.model.text_projection(pooled), dim=-1)


def fetch_clip(folder: str) -> Path:
    """The folder on this machine, downloaded if need be."""
    weights = ("model.safetensors", "model-?????-of-?????.safetensors", "model.safetensors.index.json")
    tokenizer = ("vocab.json", "merges.txt", "tokenizer.json", "special_tokens_map.json")
    return NetworkSource(folder, KEY).fetch((*_FILES, *weights, *tokenizer), _FILES)


def load_clip(folder: str, device: torch.device | str = "cpu") -> CLIP:
    """Same errors as model.backbone.load."""
    source, path = NetworkSource(folder, KEY), fetch_clip(folder)
    model = source.load(CLIPModel, path)
    freeze(model, torch.float32, device, folder)
    processor = source.attempt(lambda: AutoImageProcessor.from_pretrained(path, backend="pil"))
    return CLIP(model, processor, source.attempt(lambda: CLIPTokenizer.from_pretrained(path)))
