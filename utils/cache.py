"""What is computed once per image: one half-precision file for each, in a folder named by what made them.

    cached_output.KEY/                       KEY = hash of the stamp, so settings that differ never share a folder
    cached_output.KEY/stamp.json             the stamp in words: network, image size, preprocessing, ...
    cached_output.KEY/IDENTIFIER.safetensors

Each file is complete or not there, and carries the hash of its image and a digest. So a build that was killed at any
moment goes on where it stopped, processes share the work without locks, and a damaged file costs only its image.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import torch
from torch import Tensor

from utils.store import StoreError, digest, file_digest, read_tensors, write_json, write_tensors

SUFFIX = ".safetensors"
LONGEST_NAME = 200  # characters; file systems take names of 255
Entry = Tensor | dict[str, Tensor]


class CacheError(StoreError):
    """A cache that cannot be used; the message names the file and what to do."""


class FeatureCache:
    """Arrays of one shape, or of one set of named shapes, by image identifier; for any number of processes."""

    def __init__(self, folder: str | Path, stamp: dict, shape: Sequence[int] | Mapping[str, Sequence[int]]):
        self.single = not isinstance(shape, Mapping)  # an entry is a tensor, not a dict of them
        named = {"value": shape} if self.single else shape
        self.shapes = {name: tuple(sizes) for name, sizes in named.items()}
        self.stamp = json.loads(json.dumps({**stamp, "shape": self.shapes, "dtype": "float16"}))
        self.folder = Path(folder) / f"cached_output.{digest(self.stamp)[:12]}"
        self.reload()

    def reload(self) -> None:
        """See what is on disk now (after another process has written)."""
        self._names = {path.name for path in self.folder.glob(f"*{SUFFIX}")}

    def __contains__(self, identifier: str) -> bool:
        return file_name(identifier) in self._names

    def __len__(self) -> int:
        return len(self._names)

    def get(self, identifier: str) -> Entry:
        """What is kept of one image, half precision. Raises CacheError if it is absent or damaged."""
        if identifier not in self:
            raise CacheError(f"{self.folder}: no entry for image {identifier}; run the script again to add it")
        return self._read(identifier)[0]

    def put(self, identifier: str, image_hash: str, entry: Entry) -> None:
        """Keep what was computed of one image. CacheError for other shapes and values beyond half precision."""
        tensors = {"value": entry} if isinstance(entry, Tensor) else entry
        shapes = {name: tuple(value.shape) for name, value in tensors.items()}
        if shapes != self.shapes:
            raise CacheError(f"image {identifier}: expected arrays of shape {self.shapes}, got {shapes}")
        if not (self.folder / "stamp.json").is_file():
            write_json(self.folder / "stamp.json", self.stamp)
        name = file_name(identifier)
        try:
            tensors = {key: value.to(torch.float16) for key, value in tensors.items()}
            write_tensors(self.folder / name, tensors, {"identifier": identifier, "image": image_hash})
        except StoreError as error:
            raise CacheError(f"image {identifier}: its features do not fit half precision ({error})") from error
        self._names.add(name)

    def missing(self, images: Iterable[tuple[str, str]]) -> list[str]:
        """Identifiers, out of (identifier, image hash) pairs, whose entry is absent, damaged or of another image."""
        images = list(images)
        with ThreadPoolExecutor() as pool:
            good = list(pool.map(lambda image: self._is_good(*image), images))
        return [identifier for (identifier, _), is_good in zip(images, good, strict=True) if not is_good]

    def _is_good(self, identifier: str, image_hash: str) -> bool:
        try:
            return self._read(identifier)[1] == image_hash
        except (FileNotFoundError, CacheError):
            return False

    def _read(self, identifier: str) -> tuple[Entry, str]:
        """An entry and the hash of its image; CacheError if it is damaged or another image's."""
        path = self.folder / file_name(identifier)
        tensors, meta = read_tensors(path, CacheError, "run the script again to rebuild it")
        shapes = {name: tuple(value.shape) for name, value in tensors.items()}
        if meta.get("identifier") != identifier or shapes != self.shapes:
            raise CacheError(f"{path} holds something else; run the script again to rebuild it")
        return (tensors["value"] if self.single else tensors), meta.get("image", "")


def file_name(identifier: str) -> str:
    """A name for the file of an image that no file system takes for something else."""
    name = quote(identifier, safe=" ()+,=@").replace(".", "%2E")
    if len(name) > LONGEST_NAME:
        name = f"{name[: LONGEST_NAME - 33]}-{digest(identifier)}"
    return name + SUFFIX


def fill_cache(
    cache: FeatureCache,
    hashes: Mapping[str, str],
    compute: Callable[[Sequence[str]], Iterable[Entry]],
    missing: Sequence[str],
    batch_size: int,
    progress: Callable[[Iterable], Iterable] = iter,
) -> None:
    """Compute and keep the `missing` identifiers, `batch_size` images at a time.

    hashes: {identifier: hash of its image file}. compute: identifiers -> their entries, such as (n, *shape).
    The batches come in an order of this process's own, and what another has kept meanwhile is left out: runs side by
    side share the work.
    """
    batches = [missing[i : i + batch_size] for i in range(0, len(missing), batch_size)]
    random.SystemRandom().shuffle(batches)
    for batch in progress(batches):
        if identifiers := cache.missing((name, hashes[name]) for name in batch):
            for identifier, entry in zip(identifiers, compute(identifiers), strict=True):
                cache.put(identifier, hashes[identifier], entry)


def hash_images(paths: Sequence[str]) -> list[str]:
    """Hashes of image files, by which a cache notices that an image has changed."""
    with ThreadPoolExecutor() as pool:
        return [found[:16] for found in pool.map(file_digest, paths)]
