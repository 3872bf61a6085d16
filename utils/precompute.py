"""Everything that is computed once per image and then read from disk: VAE posteriors and the conditions of CPM."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor
from tqdm import tqdm

from config import resolve_network, resolve_path
from dataset import ImageRef
from dataset.pair_dataset import PairDataset, load_image, load_pil
from model.condition import compute_condition, condition_facts, get_condition
from model.facts import network_facts, network_fingerprint
from model.load import load_stable_diffusion, load_vision
from model.vae import encode_moments
from utils.cache import CacheError, FeatureCache, fill_cache, hash_file

Compute = Callable[[Sequence[ImageRef]], Tensor]


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
    """What names the configured Stable Diffusion model to model.load and model.facts."""
    section = cfg.NETWORK
    return {
        "folder": resolve_network(section.FOLDER),
        "init": section.INIT,
        "architecture": section.ARCHITECTURE,
    }


def fingerprint_stable_diffusion(cfg, parts: Sequence[str]) -> str:
    """Hash of the weights of some parts; a hub id that is not on this machine yet is downloaded."""
    where = find_stable_diffusion(cfg)
    try:
        return network_fingerprint(parts=parts, seed=cfg.SEED, **where)
    except FileNotFoundError:
        load_stable_diffusion(parts=parts, **where)
        return network_fingerprint(parts=parts, seed=cfg.SEED, **where)


def find_condition(cfg, condition: str) -> dict:
    """What names the network of a condition to model.load and model.facts."""
    section = cfg.CONDITION
    folder = {"DINO": section.DINO_FOLDER, "CLIP": section.CLIP_FOLDER}[get_condition(condition).network]
    return {"folder": resolve_network(folder), "init": cfg.NETWORK.INIT}


def fingerprint_condition(cfg, condition: str) -> str:
    """Hash of the weights of a condition's network; a hub id that is not on this machine yet is downloaded."""
    where = find_condition(cfg, condition)
    try:
        return network_fingerprint(seed=cfg.SEED, **where)
    except FileNotFoundError:
        load_vision(get_condition(condition).network, **where)
        return network_fingerprint(seed=cfg.SEED, **where)


def condition_shape(cfg, condition: str) -> tuple[int, int]:
    """(tokens, features) of a condition's array of one image; downloads the network if need be."""
    where = find_condition(cfg, condition)
    shape = condition_facts(condition, **where)
    if shape is None:
        load_vision(get_condition(condition).network, **where)
        shape = condition_facts(condition, **where)
    return shape


def moments_source(cfg) -> Source:
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
        def compute(refs: Sequence[ImageRef]) -> Tensor:
            return encode_moments(vae, _read(partial(load_image, image_size=cfg.DATASET.IMAGE_SIZE), refs, torch.stack))

        return compute

    shape = (2 * facts.latent_channels, height, width)
    return Source(f"VAE-{cfg.NETWORK.NAME}", stamp, shape, load)


def condition_source(cfg, condition: str) -> Source:
    """What the condition's network sees in the image (model.condition.compute_condition), computed in float32."""
    where, spec = find_condition(cfg, condition), get_condition(condition)
    shape = condition_shape(cfg, condition)
    stamp = {
        "what": f"{spec.network}: {spec.output}",
        "fingerprint": fingerprint_condition(cfg, condition),
        "preprocessing": "the network's own processor",
    }

    def load(device: torch.device) -> Compute:
        network = load_vision(spec.network, device=device, seed=cfg.SEED, **where)
        return lambda refs: compute_condition(condition, network, _read(load_pil, refs, list))

    return Source(spec.cache, stamp, shape, load)


def build_caches(cfg, datasets: Sequence[PairDataset], condition: str | None, accelerator: Accelerator) -> None:
    """Fill the caches that a prompt with this condition needs, and give them to the datasets."""
    sources = {"moments": moments_source(cfg)}
    if condition is not None:
        sources["condition"] = condition_source(cfg, condition)
    refs = unique_images(datasets)
    hashes = hash_images(refs)
    for key, source in sources.items():
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
            lambda names: compute([by_name[name] for name in names]),
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


def _read(read: Callable, refs: Sequence[ImageRef], join: Callable):
    with ThreadPoolExecutor() as pool:
        return join(list(pool.map(read, refs)))
