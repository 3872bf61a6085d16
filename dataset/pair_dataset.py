"""Pair records -> tensors: the batches that training, evaluation and the caches are fed with.

Keypoints of a batch are (x, y) pixels of the resized image (W', H'), unless the name ends in `_orig`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from dataset.error import DatasetError, MissingDataError
from dataset.record import Benchmark, ImageRef, PairRecord, threshold
from dataset.table import FLAGS
from utils.image import as_size, resize_image

EPS = 1e-4  # keypoints keep this distance (px) from the border of the resized image


class Cache(Protocol):
    """What was computed once per image: `identifier in cache`, `cache.get(identifier)` -> tensor."""

    def __contains__(self, identifier: object) -> bool: ...

    def get(self, identifier: str) -> torch.Tensor: ...


def load_pil(ref: ImageRef) -> Image.Image:
    """The image in RGB at its own size, mirrored if `ref.flip`.

    Raises MissingDataError or DatasetError with the path if it is not there, cannot be decoded, or is not of
    `ref.size`.
    """
    advice = "`sh script/prepare_data.sh` downloads and checks data sets"
    try:
        with Image.open(ref.path) as file:
            image = file.convert("RGB")
    except FileNotFoundError:
        raise MissingDataError(f"{ref.path}: no such image. {advice}") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise DatasetError(f"{ref.path}: the image cannot be decoded ({error}). {advice}") from error
    if (image.height, image.width) != ref.size:
        found = (image.height, image.width)
        raise DatasetError(f"{ref.path}: the image has size (H, W) = {found}, its annotation says {ref.size}. {advice}")
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if ref.flip else image


def load_image(ref: ImageRef, image_size: int | tuple[int, int]) -> torch.Tensor:
    """(3, H', W') float32 in [-1, 1] (mean 0.5, std 0.5), mirrored if `ref.flip`, aspect ratio not kept.

    Resized as torchvision does tensors: bilinear, antialiased, half-pixel centres.
    """
    return resize_image(load_pil(ref), image_size)


def compute_scale(size: tuple[int, int], image_size: tuple[int, int]) -> np.ndarray:
    """(2,) float32 factors for (x, y): W'/W, H'/H."""
    return np.array([image_size[1] / size[1], image_size[0] / size[0]], dtype=np.float32)


def clamp_kps(kps: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Points (N, 2) moved into [EPS, W' - 1 - EPS] x [EPS, H' - 1 - EPS]."""
    last = np.array([image_size[1] - 1, image_size[0] - 1], dtype=np.float32)
    return np.clip(kps, np.float32(EPS), last - np.float32(EPS))


def pack_kps(kps: np.ndarray, max_kps: int) -> np.ndarray:
    """(max_kps, 2) float32: the points (N, 2), then zeros. ValueError if there are more."""
    if len(kps) > max_kps:
        raise ValueError(f"{len(kps)} keypoints do not fit into max_kps = {max_kps}")
    packed = np.zeros((max_kps, 2), dtype=np.float32)
    packed[: len(kps)] = kps
    return packed


class PairDataset(Dataset):
    """The pairs of a benchmark as dicts of tensors; `collate` makes batches of them.

    image_size: of the network's input, one number or (H', W'). caches: for each name K, `src_K` and `trg_K`
    are `cache.get(identifier)`; an image missing from a cache is refused here. with_images: also decode them.

    Keys of a batch (B pairs, N = benchmark.max_kps, padding is zero):
        index (B,) int64, pair_id, category: lists; category_id (B,) int64, the place in benchmark.categories
        src_identifier, trg_identifier: lists; src_size, trg_size (B, 2) int64, original (H, W)
        src_kps, trg_kps (B, N, 2) float32, resized px, clamped; kps_mask (B, N) bool
        trg_kps_orig (B, N, 2) float32, original px, not clamped
        pck_threshold (B,) float32, resized px; pck_threshold_orig (B,) float32, original px
        flags: dict of (B,) int64, -1 = unknown
        src_img, trg_img (B, 3, H', W') float32 in [-1, 1], only with_images
        src_K, trg_K (B, ...) for each cache K
    """

    def __init__(
        self,
        benchmark: Benchmark,
        image_size: int | tuple[int, int],
        caches: Mapping[str, Cache] | None = None,
        with_images: bool = False,
    ) -> None:
        self.benchmark = benchmark
        self.image_size = as_size(image_size)
        self.caches = dict(caches or {})
        self.with_images = with_images
        self._category_ids = {name: i for i, name in enumerate(benchmark.categories)}
        if self.caches:
            check_caches(self.caches, benchmark.images())

    def select(self, positions: Sequence[int]) -> PairDataset:
        """Only the pairs at `positions`, in that order, with the same caches."""
        return PairDataset(self.benchmark.select(positions), self.image_size, self.caches, self.with_images)

    def __len__(self) -> int:
        return len(self.benchmark)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.benchmark[index]
        item = {
            "index": index,
            "pair_id": record.pair_id,
            "category": record.category,
            "category_id": self._category_ids[record.category],
            "flags": {name: record.flags.get(name, -1) for name in FLAGS},
            **self._points(record),
        }
        for side, ref in (("src", record.src), ("trg", record.trg)):
            item[f"{side}_identifier"] = ref.identifier
            item[f"{side}_size"] = torch.tensor(ref.size)
            if self.with_images:
                item[f"{side}_img"] = load_image(ref, self.image_size)
            for name, cache in self.caches.items():
                item[f"{side}_{name}"] = cache.get(ref.identifier)
        return item

    def _points(self, record: PairRecord) -> dict[str, Any]:
        rule, max_kps = self.benchmark.threshold_rule, self.benchmark.max_kps
        src_kps = record.src_kps * compute_scale(record.src.size, self.image_size)
        trg_scale = compute_scale(record.trg.size, self.image_size)
        trg_kps = record.trg_kps * trg_scale
        trg_bbox = record.trg_bbox * np.tile(trg_scale, 2)
        return {
            "src_kps": torch.from_numpy(pack_kps(clamp_kps(src_kps, self.image_size), max_kps)),
            "trg_kps": torch.from_numpy(pack_kps(clamp_kps(trg_kps, self.image_size), max_kps)),
            "trg_kps_orig": torch.from_numpy(pack_kps(record.trg_kps, max_kps)),
            "kps_mask": torch.arange(max_kps) < len(trg_kps),
            "pck_threshold": threshold(rule, trg_bbox, trg_kps, self.image_size),
            "pck_threshold_orig": threshold(rule, record.trg_bbox, record.trg_kps, record.trg.size),
        }


class ImageDataset(Dataset):
    """Single images as dicts of tensors; `collate` makes batches of them.

    categories: gives `category_id`; by default the sorted categories of `refs`. Pass the benchmark's, so that
    an id means the same in pairs and images.

    Keys of a batch (B images):
        index, category_id (B,) int64; identifier, category: lists; size (B, 2) int64, original (H, W)
        img (B, 3, H', W') float32 in [-1, 1], only with_images; K (B, ...) for each cache K
    """

    def __init__(
        self,
        refs: Sequence[ImageRef],
        image_size: int | tuple[int, int],
        caches: Mapping[str, Cache] | None = None,
        with_images: bool = True,
        categories: Sequence[str] | None = None,
    ) -> None:
        self.refs = list(refs)
        self.image_size = as_size(image_size)
        self.caches = dict(caches or {})
        self.with_images = with_images
        names = sorted({ref.category for ref in self.refs}) if categories is None else categories
        self._category_ids = {name: i for i, name in enumerate(names)}
        check_caches(self.caches, self.refs)

    def __len__(self) -> int:
        return len(self.refs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        ref = self.refs[index]
        item = {
            "index": index,
            "identifier": ref.identifier,
            "category": ref.category,
            "category_id": self._category_ids[ref.category],
            "size": torch.tensor(ref.size),
        }
        if self.with_images:
            item["img"] = load_image(ref, self.image_size)
        return item | {name: cache.get(ref.identifier) for name, cache in self.caches.items()}


def check_caches(caches: Mapping[str, Cache], refs: Sequence[ImageRef]) -> None:
    """Refuses, before anything slow, a cache that lacks one of the images."""
    for name, cache in caches.items():
        missing = [ref.identifier for ref in refs if ref.identifier not in cache]
        if missing:
            raise DatasetError(
                f"cache {name!r} lacks {len(missing)} of {len(refs)} images, for instance {missing[0]!r}: "
                "it was made from other images; fill it for this data set and split first"
            )


def drop_padding(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The pair batch with no more keypoint columns than its fullest pair has points (at least one)."""
    used = max(1, int(batch["kps_mask"].sum(dim=1).max()))
    return {key: value[:, :used] if "kps" in key else value for key, value in batch.items()}


def collate(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A batch of items with equal keys: tensors stacked, numbers as (B,) int64 or float32, texts as lists."""
    return {key: _collate_values([item[key] for item in items]) for key in items[0]}


def _collate_values(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, torch.Tensor):
        return torch.stack(values)
    if isinstance(first, Mapping):
        return collate(values)
    if isinstance(first, str):
        return values
    return torch.tensor(values, dtype=torch.float32 if isinstance(first, float) else torch.int64)
