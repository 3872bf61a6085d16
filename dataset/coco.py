"""Keypoint annotations in COCO's format: one file for any number of images, objects and categories."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset.error import DatasetError
from dataset.parse import Fields, is_file_name, read_text
from dataset.record import Keypoints


@dataclass(frozen=True, eq=False)
class CocoObject:
    """An object with keypoints in an image; px of the image."""

    where: str  # file and annotation, for messages
    image: str  # its file_name
    category: str
    names: tuple[str, ...]  # of all K keypoints of the category
    kps: np.ndarray  # (K, 2) float64, (x, y); NaN where not labelled
    bbox: np.ndarray  # (4,) float64, x1 y1 x2 y2; NaN if there is none

    def seen(self) -> Keypoints:
        """Those that are labelled."""
        there = ~np.isnan(self.kps).any(axis=1)
        return Keypoints(tuple(n for n, shown in zip(self.names, there, strict=True) if shown), self.kps[there])


def read_coco(path: Path) -> list[CocoObject]:
    """The objects of a file that have a labelled keypoint (visibility 1 or 2), in its order; crowds are left out.

    Raises DatasetError, with file and id, for what is missing, of the wrong kind, or there twice.
    """
    try:
        content = json.loads(read_text(path))
    except (RecursionError, ValueError) as error:
        raise error if isinstance(error, DatasetError) else DatasetError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise DatasetError(f"{path}: holds a {type(content).__name__}, expected COCO's object with 'images', ...")
    whole = Fields(str(path), content)
    images, categories = (_by_id(whole, part) for part in ("images", "categories"))
    names: dict[str, object] = {}
    for image_id, image in images.items():
        file_name = read_path(image, "file_name")
        if names.setdefault(file_name, image_id) != image_id:
            raise DatasetError(f"{image.where}: {file_name} is the file of image {names[file_name]} already")
    objects = []
    for annotation in _by_id(whole, "annotations").values():
        if annotation.values.get("iscrowd") or not annotation.values.get("keypoints"):
            continue
        category, image = _find(annotation, "category_id", categories), _find(annotation, "image_id", images)
        found = _read_object(annotation, category, read_path(image, "file_name"))
        if not np.isnan(found.kps).all():
            objects.append(found)
    return objects


def read_path(record: Fields, key: str) -> str:
    """Path of a file in the folder of images."""
    value = record.get(key)
    if not isinstance(value, str) or not all(map(is_file_name, value.strip().split("/"))):
        raise record.wrong(key, "the path of an image below the folder images/")
    return value.strip()


def _read_object(annotation: Fields, category: Fields, image: str) -> CocoObject:
    names = category.get("keypoints")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise category.wrong("keypoints", "a list of names, each once")
    values = annotation.array("keypoints", (3 * len(names),), f"{len(names)} times x, y, visibility, as its category")
    points = values.reshape(-1, 3)
    if not np.isin(points[:, 2], (0, 1, 2)).all():
        raise annotation.wrong("keypoints", "x, y, and a visibility of 0, 1 or 2")
    bbox = np.full(4, np.nan)
    if annotation.values.get("bbox"):
        x, y, width, height = annotation.array("bbox", (4,), "[x, y, width, height]")
        bbox = np.array([x, y, x + width, y + height])
    kps = np.where(points[:, 2:] > 0, points[:, :2], np.nan)
    name = category.get("name")
    if not isinstance(name, str):
        raise category.wrong("name", "a name")
    return CocoObject(annotation.where, image, name, tuple(names), kps, bbox)


def _by_id(whole: Fields, part: str) -> dict[object, Fields]:
    """The records of a list by their ids."""
    records, found = whole.get(part), {}
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise whole.wrong(part, "a list of objects")
    for number, values in enumerate(records):
        record = Fields(f"{whole.where}, {part}[{number}]", values)
        key = record.get("id")
        if not isinstance(key, int | str):
            raise record.wrong("id", "a number")
        if key in found:
            raise DatasetError(f"{record.where}: id {key!r} stands there twice")
        found[key] = record
    return found


def _find(annotation: Fields, key: str, records: dict[object, Fields]) -> Fields:
    value = annotation.get(key)
    if not isinstance(value, int | str) or value not in records:
        raise annotation.wrong(key, f"the id of one of the {len(records)} records")
    return records[value]
