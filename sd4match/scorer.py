"""From any images and texts to scores of how well they fit."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from config import load_config, resolve_path
from engine.build import build_method
from engine.check import check_config
from engine.words import WordReader
from model.backbone.device import resolve_device
from model.backbone.facts import network_facts
from model.backbone.load import StableDiffusion
from model.method.base import Method
from model.source import find_sources, find_stable_diffusion, load_sources
from sd4match.source import find_preset
from utils.draw import TokenMaps
from utils.image import ImageSource, read_image
from utils.noise import identifier_seed


@dataclass(frozen=True)
class Scores:
    """(images, texts) arrays: higher fits better. Only scores of the same image, or of the same text, compare."""

    total: np.ndarray
    terms: Mapping[str, np.ndarray]  # what the total is the sum of: "attention", "noise"; {} if it is one term alone

    def best_text(self) -> list[int]:
        """For each image the number of the text that fits best."""
        return self.total.argmax(axis=1).tolist()


class Scorer:
    """Scores texts against images; calls take turns under a lock, so that one scorer serves several threads."""

    def __init__(self, cfg, method: Method, sources: Mapping, device: torch.device) -> None:
        """For `from_pretrained`, which makes the parts."""
        self.config, self.device = cfg, device
        self._method, self._sources = method, sources
        self._lock = threading.Lock()
        self._words: WordReader | None = None

    @classmethod
    def from_pretrained(
        cls,
        name: str = "mini",  # "mini", "sd2-1-base", a diffusers folder or hub id
        weights: str | Path | None = None,  # learned ones: a folder that train.py wrote, or a file or folder of others
        device: str = "auto",  # "auto" (GPU if there is one), or a torch device
        *,
        method: str = "dsd",  # or "clip"
        timesteps: int | None = None,  # that a score is the mean over; None: the configuration's
        terms: str | None = None,  # "both", "attention", "noise"
        image_size: int | tuple[int, int] | None = None,  # (H, W) of the network's input
        precision: str | None = None,  # "auto", "fp32", "fp16", "bf16"
        seed: int | None = None,  # of the noise
        settings: Mapping[str, Any] | None = None,  # any other key of config/default.py -> value
    ) -> Scorer:
        """Load the networks and, if they are named, learned weights.

        Raises ConfigError (a setting that cannot be used), NetworkNotFoundError, NetworkError or StoreError.
        """
        size = (image_size, image_size) if isinstance(image_size, int) else image_size
        given = {"DEVICE": device, "METHOD.NAME": method, "DSD.TIMESTEPS": timesteps, "DSD.TERMS": terms}
        given |= {"DATASET.IMAGE_SIZE": size, "PRECISION": precision, "SEED": seed}
        given = {key: value for key, value in given.items() if value is not None}
        if weights is not None:
            given["METHOD.WEIGHTS"] = Path(weights).name
        file = "config/mini/dsd.yaml" if name == "mini" else "config/comvg/dsd.yaml"
        network = find_preset(name).settings
        cfg = load_config(resolve_path(file), overrides={**network, **given, **(settings or {})})
        check_config(cfg, training=False)
        device = resolve_device(cfg.DEVICE)
        method = build_method(cfg, device, None, folder=weights)
        return cls(cfg, method, load_sources(find_sources(cfg, method.reads, None), device), device)

    @property
    def knows_photos(self) -> bool:
        """False for the mini networks."""
        return self.config.NETWORK.NAME != "mini"

    def score(self, images: ImageSource | Sequence[ImageSource], texts: str | Sequence[str]) -> Scores:
        """Every image (as utils.image.read_image takes it) with every text. Raises ImageError, ValueError."""
        images = list(images) if isinstance(images, list | tuple) else [images]
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not images or not texts:
            raise ValueError("give at least one image and one text")
        pictures = [read_image(image).image for image in images]
        names = [hashlib.blake2b(f"{p.size}".encode() + p.tobytes(), digest_size=16).hexdigest() for p in pictures]
        with self._lock, torch.no_grad():
            batch: dict[str, Any] = {"texts": [texts], "identifiers": [names]}
            for key, compute in self._sources.items():
                batch[key] = torch.stack(list(compute(pictures, [None] * len(pictures))))[None].to(self.device)
            seeds = torch.tensor([[identifier_seed(self.config.SEED, name) for name in names]])
            found = self._method.rank(batch, seeds)
        tables = {name: value.view(len(texts), len(pictures)).T.float().cpu().numpy() for name, value in found.items()}
        return Scores(tables.pop("score"), tables)

    def read_words(self, image: ImageSource, text: str) -> TokenMaps:
        """Where each word of a text looks on an image: shares of the attention in the layers of the score."""
        picture, score = read_image(image).image, self._method.score
        with self._lock:
            if self._words is None:
                facts = network_facts(**find_stable_diffusion(self.config))
                parts = score.unet, score.text.text_model, score.text.tokenizer, score.scheduler
                self._words = WordReader(self.config, self.device, score.layers, StableDiffusion(facts, None, *parts))
            return self._words.read_words(picture, text)
