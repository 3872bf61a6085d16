"""Everything that is computed once per image and then read from disk: VAE posteriors and the conditions of CPM."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from tqdm import tqdm

from config import resolve_path
from dataset import ImageRef
from dataset.pair_dataset import PairDataset, load_pil
from model.method import METHODS
from model.source import SOURCES, Source, condition_source
from utils.cache import CacheError, FeatureCache, fill_cache, hash_file


def find_caches(cfg) -> Path:
    """The folder below which caches are kept."""
    return Path(resolve_path(cfg.CACHE_ROOT or f"{cfg.OUTPUT_ROOT}/asset"))


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


def _map(function: Callable, values: Sequence) -> list:
    with ThreadPoolExecutor() as pool:
        return list(pool.map(function, values))
