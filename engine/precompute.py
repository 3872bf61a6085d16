"""Everything that is computed once per image and then read from disk: VAE posteriors and the conditions of CPM."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from PIL.Image import Image
from torch import Tensor
from tqdm import tqdm

from config import resolve_network, resolve_path
from dataset import ImageRef
from dataset.pair_dataset import PairDataset, load_pil, resize_image
from model.backbone.architecture import HUB_IDS
from model.backbone.condition import compute_condition, condition_facts, get_condition
from model.backbone.dino import compute_dino_map
from model.backbone.facts import DinoFacts, condition_preprocessor, dino_facts, network_facts, network_fingerprint
from model.backbone.load import load_stable_diffusion, load_vision
from model.backbone.vae import encode_posterior
from model.method import METHODS
from utils.cache import CacheError, FeatureCache, fill_cache, hash_file

Compute = Callable[[Sequence[Image]], Tensor]  # of n RGB images -> (n, *shape)


@dataclass(frozen=True)
class Source:
    """One kind of cached array: where it goes, what it depends on, and how it is computed."""

    folder: str  # below `find_caches`
    stamp: dict
    shape: tuple[int, ...]
    load: Callable[[torch.device], Compute]  # loads the network


def find_caches(cfg) -> Path:
    """The folder below which caches are kept."""
    return Path(resolve_path(cfg.CACHE_ROOT or f"{cfg.OUTPUT_ROOT}/asset"))


def find_stable_diffusion(cfg) -> dict:
    """What names the configured Stable Diffusion model to model.backbone.load and model.backbone.facts."""
    section = cfg.NETWORK
    return {
        "folder": resolve_network(section.FOLDER),
        "init": section.INIT,
        "architecture": section.ARCHITECTURE,
    }


def find_unet(cfg) -> dict:
    """What names the UNet that takes the place of the model's own, if there is one."""
    return {"unet": resolve_network(cfg.NETWORK.UNET)} if cfg.NETWORK.UNET else {}


def fingerprint_stable_diffusion(cfg, parts: Sequence[str]) -> str:
    """Hash of the weights of some parts; a hub id that is not on this machine yet is downloaded."""
    where = find_stable_diffusion(cfg) | find_unet(cfg)
    return _fingerprint(partial(load_stable_diffusion, parts=parts, **where), parts=parts, seed=cfg.SEED, **where)


def _fingerprint(download: Callable[[], object], **where: Any) -> str:
    """model.backbone.facts.network_fingerprint, if need be after a download."""
    try:
        return network_fingerprint(**where)
    except FileNotFoundError:
        download()
        return network_fingerprint(**where)


def find_condition(cfg, condition: str) -> dict:
    """What names the network of a condition to model.backbone.load and model.backbone.facts."""
    section = cfg.CONDITION
    folder = {"DINO": section.DINO_FOLDER, "CLIP": section.CLIP_FOLDER}[get_condition(condition).network]
    return {"folder": resolve_network(folder), "init": cfg.NETWORK.INIT}


def fingerprint_condition(cfg, condition: str) -> str:
    """Hash of the weights of a condition's network; a hub id that is not on this machine yet is downloaded."""
    where = find_condition(cfg, condition)
    return _fingerprint(partial(load_vision, get_condition(condition).network, **where), seed=cfg.SEED, **where)


def condition_shape(cfg, condition: str) -> tuple[int, int]:
    """(tokens, features) of a condition's array of one image; downloads the network if need be."""
    where = find_condition(cfg, condition)
    shape = condition_facts(condition, **where)
    if shape is None:
        load_vision(get_condition(condition).network, **where)
        shape = condition_facts(condition, **where)
    return shape


def posterior_source(cfg) -> Source:
    """The VAE's posterior (mean and log-variance) of the resized image, computed in float32."""
    where = find_stable_diffusion(cfg)
    stamp = {
        "what": "posterior of the VAE",
        "fingerprint": fingerprint_stable_diffusion(cfg, ("vae",)),
        "image_size": list(cfg.DATASET.IMAGE_SIZE),
        "preprocessing": "bilinear, antialiased, [-1, 1]",
    }
    facts = network_facts(**where)
    height, width = (side // facts.vae_stride for side in cfg.DATASET.IMAGE_SIZE)

    def load(device: torch.device) -> Compute:
        vae = load_stable_diffusion(parts=("vae",), device=device, seed=cfg.SEED, **where).vae

        @torch.no_grad()
        def compute(images: Sequence[Image]) -> Tensor:
            return encode_posterior(vae, _resize(images, cfg.DATASET.IMAGE_SIZE))

        return compute

    shape = (2 * facts.latent_channels, height, width)
    return Source(f"VAE-{cfg.NETWORK.NAME}", stamp, shape, load)


def condition_source(cfg, condition: str) -> Source:
    """What the condition's network sees in the image (compute_condition), computed in float32."""
    where, spec = find_condition(cfg, condition), get_condition(condition)
    shape = condition_shape(cfg, condition)
    stamp = {
        "what": f"{spec.network}: {spec.output}",
        "fingerprint": fingerprint_condition(cfg, condition),
        "preprocessing": condition_preprocessor(condition, **where),
    }

    def load(device: torch.device) -> Compute:
        network = load_vision(spec.network, device=device, seed=cfg.SEED, **where)
        return partial(compute_condition, condition, network)

    return Source(spec.cache, stamp, shape, load)


def find_dino(cfg) -> dict:
    """What names the matcher's DINOv2 to model.backbone.load and model.backbone.facts."""
    folder = resolve_network(cfg.METHOD.DINO_FOLDER)
    return {"folder": folder, "init": cfg.NETWORK.INIT, "architecture": HUB_IDS.get(folder, "dinov2-base")}


def load_dino(cfg, device: torch.device | str = "cpu") -> tuple[torch.nn.Module, DinoFacts]:
    """The matcher's DINOv2 in float32, and its facts; a hub id that is not on this machine yet is downloaded."""
    where = find_dino(cfg)
    network = load_vision("DINO", device=device, seed=cfg.SEED, key="METHOD.DINO_FOLDER", **where)
    return network.model, dino_facts(**where)


def fingerprint_dino(cfg) -> str:
    """Hash of the weights of the matcher's DINOv2; a hub id that is not on this machine yet is downloaded."""
    return _fingerprint(partial(load_dino, cfg), seed=cfg.SEED, **find_dino(cfg))


def dino_source(cfg) -> Source:
    """DINOv2's patch tokens as a feature map (model.backbone.dino.compute_dino_map), computed in float32."""
    fingerprint = fingerprint_dino(cfg)
    section, facts = cfg.METHOD, dino_facts(**find_dino(cfg))
    normalise = section.DINO_INPUT == "normalised"
    stamp = {
        "what": "patch tokens of DINOv2",
        "fingerprint": fingerprint,
        "image_size": list(section.DINO_SIZE),
        "layer": section.DINO_LAYER,
        "norm": section.DINO_NORM,
        "preprocessing": "bilinear, antialiased",
        "mean, std": [facts.image_mean, facts.image_std] if normalise else "[-1, 1]",
    }

    def load(device: torch.device) -> Compute:
        model, _ = load_dino(cfg, device)

        def compute(images: Sequence[Image]) -> Tensor:
            return compute_dino_map(
                model,
                facts,
                _resize(images, section.DINO_SIZE),
                layer=section.DINO_LAYER,
                norm=section.DINO_NORM,
                normalise=normalise,
            )

        return compute

    return Source("DINOv2-map", stamp, facts.feature_shape(section.DINO_SIZE), load)


SOURCES = {"posterior": posterior_source, "dino": dino_source}  # what a matcher may read of each image


def find_sources(cfg, condition: str | None) -> dict[str, Source]:
    """What the matcher, and a prompt with this condition, read of each image, by its key in a batch."""
    sources = {key: SOURCES[key](cfg) for key in METHODS[cfg.METHOD.NAME].caches}
    if condition is not None:
        sources["condition"] = condition_source(cfg, condition)
    return sources


def build_caches(cfg, datasets: Sequence[PairDataset], condition: str | None, accelerator: Accelerator) -> None:
    """Fill the caches that the matcher, and a prompt with this condition, read, and give them to the datasets."""
    refs = unique_images(datasets)
    hashes = hash_images(refs)
    for key, source in find_sources(cfg, condition).items():
        cache = fill_from_source(cfg, source, refs, hashes, accelerator)
        for data in datasets:
            data.caches[key] = cache


def unique_images(datasets: Sequence[PairDataset]) -> list[ImageRef]:
    """The images of all pairs, each once."""
    return list({ref.identifier: ref for data in datasets for ref in data.benchmark.images()}.values())


def hash_images(refs: Sequence[ImageRef]) -> list[str]:
    """Hashes of the image files: a cache notices when an image has changed."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(hash_file, [ref.path for ref in refs]))


def fill_from_source(
    cfg, source: Source, refs: Sequence[ImageRef], hashes: Sequence[str], accelerator: Accelerator
) -> FeatureCache:
    """The cache of a source, holding every image. Every process must call this; they share the missing images.

    The network is loaded only if an image is missing, and dropped afterwards.
    """
    folder = find_caches(cfg) / source.folder / cfg.DATASET.NAME
    cache = FeatureCache(folder, source.stamp, source.shape)
    by_name = {ref.identifier: ref for ref in refs}
    hash_of = dict(zip(by_name, hashes, strict=True))
    (missing,) = broadcast_object_list([cache.missing(hash_of.items())])  # all share one list out
    rank, world = accelerator.process_index, accelerator.num_processes
    if share := missing[rank::world]:
        compute = source.load(accelerator.device)
        bar = partial(tqdm, desc=f"{source.folder}, {len(missing)} images", disable=not accelerator.is_main_process)
        batch_size = cfg.EVAL.BATCH_SIZE
        fill_cache(
            cache,
            hash_of,
            lambda names: compute(_map(load_pil, [by_name[name] for name in names])),
            share,
            batch_size,
            rank,
            bar,
        )
    accelerator.wait_for_everyone()
    cache.reload()
    if left := cache.missing(hash_of.items()):
        raise CacheError(
            f"{folder} lacks {len(left)} images after the build: OUTPUT_ROOT must be on a disk that all machines share "
            "(or another run is filling it now: run this again)"
        )
    return cache


def _resize(images: Sequence[Image], image_size: tuple[int, int]) -> Tensor:
    return torch.stack(_map(partial(resize_image, image_size=image_size), images))


def _map(function: Callable, values: Sequence) -> list:
    with ThreadPoolExecutor() as pool:
        return list(pool.map(function, values))
