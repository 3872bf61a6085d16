"""What both sides are given: a config, a few rendered pairs in a temporary folder, the same caches and noise."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from config import ConfigError, load_config
from dataset.pair_dataset import PairDataset
from engine.build import build_accelerator, build_method, build_pairs
from engine.check import check_config
from engine.precompute import build_caches, unique_images
from mini.render.write import write_spair
from model.backbone.facts import network_facts
from model.backbone.load import load_stable_diffusion
from model.method.sd4match import SD4Match
from model.prompt.base import Prompt
from model.source import condition_shape, find_stable_diffusion
from script.speed.flops import Work, require_configs
from script.speed.measure import held_bytes
from script.speed.reference import DictCache, ReferenceExtractor, draw_image_noise
from utils.noise import identifier_seed

PRESETS = {  # --network -> config file, settings
    "mini": ("config/mini/base.yaml", {}),
    "sd2-1-random": (None, {"NETWORK.INIT": "random", "NETWORK.ARCHITECTURE": "sd2-1"}),
}
CATEGORIES = ("bicycle", "car", "dog", "person")
SPARE_IMAGES = 4  # per category, beside one per pair
SPLIT = "trn"


def make_config(args: argparse.Namespace, root: str = "", prompt_type: str = "CPM"):
    """The config of --network and the other flags; data and output below `root`. ConfigError for what does not fit."""
    config_file, settings = PRESETS.get(args.network, (None, {"NETWORK.FOLDER": args.network}))
    overrides = {
        **settings,
        "DATASET.NAME": "spair",
        "DATASET.ROOT": root or None,
        "OUTPUT_ROOT": f"{root}/output" if root else None,
        "DATASET.IMAGE_SIZE": [args.image_size] * 2 if args.image_size else None,
        "DEVICE": args.device,
        "PRECISION": args.precision,
        "TRAIN.BATCH_SIZE": args.batch_size,
        "EVAL.BATCH_SIZE": args.batch_size,
        "TEST.ENSEMBLE": args.ensemble,
        "PROMPT.TYPE": None if prompt_type == "CPM" else prompt_type,
    }
    cfg = load_config(config_file, args.opts, overrides)
    check_config(cfg, training=True)
    if cfg.PROMPT.KIND != "CPM":
        raise ConfigError("the benchmark trains PROMPT.KIND CPM; leave the key at its default")
    return cfg


def make_work(cfg, ensemble: int = 1, n_points: int = 30) -> Work:
    """The sizes of a config's arithmetic; reads JSON files only."""
    where = find_stable_diffusion(cfg)
    return Work(
        configs=require_configs(**where),
        image_size=tuple(cfg.DATASET.IMAGE_SIZE),
        condition_shape=condition_shape(cfg, "DINO-Feat"),
        layer=cfg.METHOD.LAYER,
        variant=cfg.PROMPT.CPM,
        ensemble=ensemble,
        n_points=n_points,
    )


@dataclass
class World:
    """Two views of the same pairs: with caches on disk for this repository, with images for the reference."""

    cfg: object
    accelerator: object
    method: SD4Match
    pairs: PairDataset
    plain_pairs: PairDataset

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def prompt(self) -> Prompt:
        return self.method.prompt

    def noise(self, identifier: str, seed: int, ensemble: int) -> Tensor:
        """The draws of an image; see `draw_image_noise`."""
        facts = network_facts(**find_stable_diffusion(self.cfg))
        size = (side // facts.vae_stride for side in self.cfg.DATASET.IMAGE_SIZE)
        seed = identifier_seed(seed, identifier)
        return draw_image_noise(seed, ensemble, (facts.latent_channels, *size), self.device)


@contextlib.contextmanager
def open_world(args: argparse.Namespace, prompt_type: str = "CPM") -> Iterator[World]:
    """Rendered --pairs pairs, filled caches and a prompt (untrained "CPM", "text" or "empty"); all gone at the end."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as root:
        cfg = make_config(args, root, prompt_type)
        render_pairs(root, args.pairs)
        accelerator, pairs = build_accelerator(cfg), build_pairs(cfg, SPLIT)
        training = prompt_type == "CPM"
        method = build_method(cfg, accelerator.device, pairs.benchmark.categories, training)
        build_caches(cfg, (pairs,), method, accelerator)
        plain = PairDataset(pairs.benchmark, pairs.frame, keep_condition(pairs, root), with_images=True)
        yield World(cfg, accelerator, method, pairs, plain)


def render_pairs(root: str, n_pairs: int) -> None:
    """Write a benchmark of about so many pairs below `root`."""
    per_category = -(-n_pairs // len(CATEGORIES))
    write_spair(root, {SPLIT: SPARE_IMAGES + per_category}, {SPLIT: per_category}, CATEGORIES)


def build_reference(world: World, timestep: int, ensemble: int, dtype: torch.dtype) -> tuple[ReferenceExtractor, int]:
    """The plain extractor, and the bytes that its networks hold on the device."""
    before, cfg = held_bytes(world.device), world.cfg
    networks = load_stable_diffusion(device=world.device, seed=cfg.SEED, **find_stable_diffusion(cfg))
    settings = {"layer": cfg.METHOD.LAYER, "timestep": timestep, "ensemble": ensemble, "dtype": dtype}
    extractor = ReferenceExtractor(networks, **settings)
    return extractor, held_bytes(world.device) - before


def keep_condition(pairs: PairDataset, root: str) -> dict[str, DictCache]:
    """DINOv2's features of all images in one file, as the reference keeps them."""
    if "condition" not in pairs.caches:
        return {}
    path, cache = Path(root) / "features.pt", pairs.caches["condition"]
    torch.save({ref.identifier: cache.get(ref.identifier) for ref in unique_images([pairs])}, path)
    return {"condition": DictCache(path)}
