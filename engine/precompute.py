"""Filling the caches: everything that a method reads of each image is computed once and then read from disk."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from dataset import ImageRef
from dataset.pair_dataset import Cache, MirroredCache, PairDataset, load_pil
from dataset.record import mirror_ref
from model.method.base import Method
from model.source import Compute, Source, find_caches, find_sources
from utils.cache import CacheError, FeatureCache, fill_cache, hash_images
from utils.progress import progress


def build_caches(cfg, datasets: Sequence[PairDataset], method: Method, accelerator: Accelerator) -> None:
    """Fill the caches that the method reads, and give them to the datasets."""
    refs = unique_images(datasets) + mirror_sources(data for data in datasets if getattr(data, "alignment", None))
    caches = fill_caches(cfg, method, refs, accelerator)
    for data in datasets:
        data.caches |= caches


def fill_caches(cfg, method: Method, refs: Sequence[ImageRef], accelerator: Accelerator) -> dict[str, Cache]:
    """What holds each array that the method reads of these images."""
    return {
        key: fill_from_source(cfg, source, refs, accelerator) if source.folder else Reader(source, refs)
        for key, source in find_sources(cfg, method.reads, method.condition).items()
    }


class Reader:
    """In a cache's place for what is made faster than it is read: nothing is kept."""

    def __init__(self, source: Source, refs: Iterable[ImageRef]) -> None:
        self._compute, self._refs = source.load("cpu"), {ref.identifier: ref for ref in refs}

    def __contains__(self, identifier: str) -> bool:
        return identifier in self._refs

    def get(self, identifier: str) -> Tensor:
        ref = self._refs[identifier]
        return self._compute([load_pil(ref)], [ref.category])[0]


def unique_images(datasets: Iterable[PairDataset]) -> list[ImageRef]:
    """The images of all pairs, each once."""
    return list({ref.identifier: ref for data in datasets for ref in data.benchmark.images()}.values())


def mirror_sources(datasets: Iterable[PairDataset]) -> list[ImageRef]:
    """The mirror images of the sources of all pairs, each once."""
    sources = {record.src.identifier: record.src for data in datasets for record in data.benchmark}
    return list(map(mirror_ref, sources.values()))


def fill_from_source(
    cfg, source: Source, refs: Sequence[ImageRef], accelerator: Accelerator
) -> FeatureCache | MirroredCache:
    """The cache of a source, holding every image. Every process must call this; they share the missing images.

    The network is loaded only if an image is missing, and dropped afterwards.
    """
    refs = list(map(mirror_ref, refs)) if source.mirrored else refs
    cache = FeatureCache(find_caches(cfg) / source.folder / cfg.DATASET.NAME, source.stamp, source.shape)
    by_name = {ref.identifier: ref for ref in refs}
    hashes = dict(zip(by_name, hash_images([ref.path for ref in refs]), strict=True))
    found = [cache.missing(hashes.items()) if accelerator.is_main_process else None]
    (missing,) = broadcast_object_list(found)  # all share one list out
    if share := missing[accelerator.process_index :: accelerator.num_processes]:
        compute = source.load(accelerator.device)
        fill_cache(
            cache,
            hashes,
            lambda names: _compute(compute, [by_name[name] for name in names]),
            share,
            cfg.EVAL.BATCH_SIZE,
            partial(progress, what=f"{source.folder}, {len(missing)} images", shown=accelerator.is_main_process),
        )
    accelerator.wait_for_everyone()
    cache.reload()
    if left := [name for name in missing if name not in cache]:
        raise CacheError(
            f"{cache.folder} lacks {len(left)} images after the build: OUTPUT_ROOT must be on a disk that all machines "
            "share"
        )
    return MirroredCache(cache) if source.mirrored else cache


def _compute(compute: Compute, refs: Sequence[ImageRef]) -> Iterable:
    with ThreadPoolExecutor() as pool:
        return compute(list(pool.map(load_pil, refs)), [ref.category for ref in refs])
