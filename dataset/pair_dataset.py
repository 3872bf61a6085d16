"""Pair records -> tensors: the batches that training, evaluation and the caches are fed with.

Keypoints of a batch are (x, y) pixels of the network's input, unless the name ends in `_orig`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import Dataset

from dataset.benchmark import Benchmark
from dataset.error import DatasetError, MissingDataError
from dataset.record import FLAGS, ImageRef, Keypoints, PairRecord, mirror_identifier, threshold
from dataset.split import Split
from utils.frame import Frame, as_frame
from utils.image import ImageError, read_image

Cache = Any  # what was computed once per image: `identifier in cache`, `cache.get(identifier)` -> tensor


class MirroredCache:
    """Of each image what a cache holds of its mirror image."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache

    @property
    def folder(self) -> Path:
        return self.cache.folder

    def __contains__(self, identifier: str) -> bool:
        return mirror_identifier(identifier) in self.cache

    def get(self, identifier: str) -> Any:
        return self.cache.get(mirror_identifier(identifier))


def load_pil(ref: ImageRef) -> Image.Image:
    """The upright image in RGB, mirrored if `ref.flip`; at its own size, but for huge ones (utils.image.read_image).

    Raises MissingDataError or DatasetError with the path if it is not there, cannot be decoded, or is not of
    `ref.size`.
    """
    try:
        picture = read_image(ref.path)
    except ImageError as error:
        raise (DatasetError if os.path.exists(ref.path) else MissingDataError)(str(error)) from error
    if ref.size is not None and picture.size != ref.size:
        turned = "; annotations count the pixels of the upright image, after its EXIF orientation"
        raise DatasetError(
            f"{ref.path}: the image has size (H, W) = {picture.size}, its annotation says {ref.size}"
            + turned * (picture.size == ref.size[::-1])
        )
    return picture.image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if ref.flip else picture.image


def load_image(ref: ImageRef, frame: Frame | int | tuple[int, int]) -> torch.Tensor:
    """The network's input (3, H', W') float32 in [-1, 1], mirrored if `ref.flip`."""
    return as_frame(frame).fit(load_pil(ref))


def pack_kps(kps: torch.Tensor, max_kps: int) -> torch.Tensor:
    """(max_kps, 2): the points (N, 2), then zeros."""
    return F.pad(kps, (0, 0, 0, max_kps - len(kps)))


def pack_ids(ids: Sequence[int], max_kps: int) -> torch.Tensor:
    """(max_kps,) int64: the ids, then -1."""
    return torch.tensor([*ids, *[-1] * (max_kps - len(ids))], dtype=torch.int64)


class RecordDataset(Dataset):
    """The records of a benchmark as dicts; `collate` makes batches of them.

    frame: how images become the network's input; a size, one number or (H', W'), stretches them. caches: of each image
    `cache.get(identifier)` is read; an image missing from a cache is refused here. with_images: also decode them.
    """

    def __init__(
        self,
        benchmark: Split,
        frame: Frame | int | tuple[int, int],
        caches: Mapping[str, Cache] | None = None,
        with_images: bool = False,
    ) -> None:
        self.benchmark = benchmark
        self.frame = as_frame(frame)
        self.caches = dict(caches or {})
        self.with_images = with_images
        if self.caches:
            check_caches(self.caches, benchmark.images())

    @property
    def image_size(self) -> tuple[int, int]:
        """(H', W') of the network's input."""
        return self.frame.image_size

    def select(self, positions: Sequence[int]) -> Self:
        """Only the records at `positions`, in that order, with the same caches."""
        return type(self)(self.benchmark.select(positions), self.frame, self.caches, self.with_images)

    def __len__(self) -> int:
        return len(self.benchmark)


class PairDataset(RecordDataset):
    """The pairs of a benchmark.

    Keys of a batch (B pairs, N = benchmark.max_kps, padding is zero):
        index (B,) int64; pair_id, category: lists
        src_identifier, trg_identifier: lists; src_size, trg_size (B, 2) int64, original (H, W)
        src_category, trg_category: lists, of the images, which may be finer than the pair's
        src_kps, trg_kps (B, N, 2) float32, input px, clamped; kps_mask (B, N) bool
        trg_kps_orig (B, N, 2) float32, original px, not clamped
        pck_threshold (B,) float32, input px; pck_threshold_orig (B,) float32, original px
        kps_ids, kps_partner (B, N) int64: the benchmark's number of each keypoint, and that of the part on the other
            side (itself on the plane of symmetry); -1 = padding or not known
        kps_aware (B, N) bool: geometry-aware, that is, the target shows another keypoint of the same group
        src_seen, trg_seen (B, N, 2) float32, input px, clamped; src_seen_ids, trg_seen_ids, src_seen_partner,
            trg_seen_partner (B, N) int64, as kps_ids and kps_partner: all keypoints that an image shows, whether or not
            the other one does; src_seen_orig, trg_seen_orig in original px, not clamped. seen_known (B,) bool: whether
            the annotations say so; kps_aware is False where they do not
        src_azimuth, trg_azimuth (B,) int64, -1 = unknown
        src_threshold (B,) float32, input px: pck_threshold's rule on the source
        flags: dict of (B,) int64, -1 = unknown
        src_img, trg_img (B, 3, H', W') float32 in [-1, 1], only with_images
        src_K, trg_K (B, ...) for each cache K
    """

    benchmark: Benchmark
    alignment: Any = None  # engine.align.Alignment, where sources may be mirrored at test time

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.benchmark[index]
        item = {
            "index": index,
            "pair_id": record.pair_id,
            "category": record.category,
            "flags": {name: record.flags.get(name, -1) for name in FLAGS},
            **self._points(record),
        }
        for side, ref in (("src", record.src), ("trg", record.trg)):
            item[f"{side}_identifier"] = ref.identifier
            item[f"{side}_category"] = ref.category
            item[f"{side}_size"] = torch.tensor(ref.size)
            item[f"{side}_azimuth"] = ref.azimuth
            if self.with_images:
                item[f"{side}_img"] = load_image(ref, self.frame)
            for name, cache in self.caches.items():
                item[f"{side}_{name}"] = cache.get(ref.identifier)
        return item

    def _points(self, record: PairRecord) -> dict[str, Any]:
        rule, max_kps, frame = self.benchmark.threshold_rule, self.benchmark.max_kps, self.frame
        src_kps, trg_kps = map(torch.from_numpy, (record.src_kps, record.trg_kps))
        src_px, trg_px = frame.to_px(src_kps, record.src.size), frame.to_px(trg_kps, record.trg.size)
        box, box_px = judging_box(rule, record), judging_box(rule, record, frame)
        src_box_px = frame.box_to_px(torch.from_numpy(record.src_bbox), record.src.size)
        return {
            **self._symmetry(record),
            "src_threshold": threshold(rule, src_box_px.numpy(), src_px.numpy(), frame.image_size),
            "src_kps": pack_kps(frame.clamp(src_px), max_kps),
            "trg_kps": pack_kps(frame.clamp(trg_px), max_kps),
            "trg_kps_orig": pack_kps(trg_kps, max_kps),
            "kps_mask": torch.arange(max_kps) < len(trg_kps),
            "pck_threshold": threshold(rule, box_px, trg_px.numpy(), frame.image_size),
            "pck_threshold_orig": threshold(rule, box, record.trg_kps, record.trg.size),
        }

    def _symmetry(self, record: PairRecord) -> dict[str, Any]:
        """Which keypoint is which, and what else the two images show."""
        max_kps, ids = self.benchmark.max_kps, self.benchmark.find_ids(record.category, record.kps_ids)
        symmetry = self.benchmark.find_symmetry(record.category)
        known = record.src_seen is not None and record.trg_seen is not None
        aware = torch.zeros(max_kps, dtype=torch.bool)
        if symmetry and known:
            aware[: len(ids)] = torch.from_numpy(
                symmetry.find_aware(ids, self.benchmark.find_ids(record.category, record.trg_seen.ids))
            )
        item = {
            "kps_ids": pack_ids(ids, max_kps),
            "kps_partner": pack_ids(symmetry.partners(ids).tolist() if symmetry else [], max_kps),
            "kps_aware": aware,
            "seen_known": torch.tensor(known),
        }
        for side, ref, seen in (("src", record.src, record.src_seen), ("trg", record.trg, record.trg_seen)):
            names, points = seen or Keypoints((), np.zeros((0, 2), np.float32))
            px = self.frame.to_px(torch.from_numpy(points), ref.size)
            item[f"{side}_seen"] = pack_kps(self.frame.clamp(px), max_kps)
            item[f"{side}_seen_orig"] = pack_kps(torch.from_numpy(points), max_kps)
            seen_ids = self.benchmark.find_ids(record.category, names)
            item[f"{side}_seen_ids"] = pack_ids(seen_ids, max_kps)
            item[f"{side}_seen_partner"] = pack_ids(symmetry.partners(seen_ids).tolist() if symmetry else [], max_kps)
        return item


def judging_box(rule: str, record: PairRecord, frame: Frame | None = None) -> np.ndarray:
    """The box (4,) whose longer side a box rule takes, original px, or px of the frame.

    "src_bbox" takes the source's (SPair-71k in LDM_correspondences), the other rules the target's; "bbox_width" maps
    both its axes into the frame by the image's width (CUB there).
    """
    box, image = (record.src_bbox, record.src) if rule == "src_bbox" else (record.trg_bbox, record.trg)
    if frame is None:
        return box
    if rule == "bbox_width":
        return box * (frame.image_size[1] / image.size[1])
    return frame.box_to_px(torch.from_numpy(box), image.size).numpy()


class ImageDataset(Dataset):
    """What a method reads of single images; `collate` makes batches of them.

    Keys of a batch (B images): identifier, category: lists; K (B, ...) for each cache K.
    """

    def __init__(self, refs: Sequence[ImageRef], caches: Mapping[str, Cache]) -> None:
        self.refs, self.caches = list(refs), dict(caches)
        check_caches(self.caches, self.refs)

    def __len__(self) -> int:
        return len(self.refs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        ref = self.refs[index]
        values = {name: cache.get(ref.identifier) for name, cache in self.caches.items()}
        return {"identifier": ref.identifier, "category": ref.category, **values}


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
    """A batch of items with equal keys: tensors stacked, numbers as (B,) int64 or float32, texts and lists as lists."""
    return {key: _collate_values([item[key] for item in items]) for key in items[0]}


def _collate_values(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, torch.Tensor):
        return torch.stack(values)
    if isinstance(first, Mapping):
        return collate(values)
    if isinstance(first, str | list):
        return values
    return torch.tensor(values, dtype=torch.float32 if isinstance(first, float) else torch.int64)
