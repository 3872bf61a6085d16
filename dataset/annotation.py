"""Labelled images: categories with named keypoints, and the objects of images; COCO's format, LabelMe's and CSV.

Points are (x, y) px of the upright image as the file says them, boxes (x1, y1, x2, y2), sizes (H, W). What is missing,
of the wrong kind or there twice is a DatasetError that names file and record.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageDraw

from dataset.error import DatasetError, MissingDataError
from dataset.parse import Fields, measure_image, parse_json, read_csv, read_text

LOST = 1.0  # px that a labelled point may lie outside its image; it is moved to the border
CSV_COLUMNS, CSV_OPTIONAL = ("image", "keypoint", "x", "y"), ("category", "object", "visible")
T = TypeVar("T")
NO_CATEGORY = "object"  # of points whose file names no category
_SIDES = re.compile(r"left|right|(?<![a-z])[lr](?![a-z])", re.IGNORECASE)
_OTHER = {"left": "right", "right": "left", "l": "r", "r": "l"}


@dataclass(frozen=True)
class Category:
    """A kind of object and the names of its K keypoints, in order."""

    id: int
    name: str
    keypoints: tuple[str, ...]
    skeleton: tuple[tuple[int, int], ...] = ()  # pairs of keypoints, counted from 1
    more: Mapping[str, Any] = field(default_factory=dict)  # COCO's other entries, kept as they are

    def find_flip(self) -> tuple[int, ...] | None:
        """Each keypoint's index in the mirror image; None if neither `flip_pairs` nor the names tell left from right.

        flip_pairs: pairs of names, or of indices from 0, in the category's record.
        """
        pairs = self.more.get("flip_pairs")
        if pairs is None:
            pairs = _pair_names(self.keypoints)
            if not pairs:
                return None
        flip = list(range(len(self.keypoints)))
        try:
            for pair in pairs:
                a, b = (self.keypoints.index(n) if isinstance(n, str) else range(len(flip))[n] for n in pair)
                flip[a], flip[b] = b, a
        except (IndexError, TypeError, ValueError):
            raise DatasetError(
                f"category {self.name}: 'flip_pairs' holds {pair!r}, which is no pair of keypoints"
            ) from None
        return tuple(flip)


@dataclass(frozen=True)
class LabelledImage:
    id: int
    file_name: str
    path: str
    size: tuple[int, int]  # (H, W)


@dataclass(frozen=True, eq=False)
class LabelledObject:
    id: int
    image_id: int
    category_id: int
    points: np.ndarray | None = None  # (K, 3) float64: x, y, visibility 0 (not labelled), 1 (hidden) or 2 (visible)
    bbox: np.ndarray | None = None  # (4,) float64
    segmentation: Any = None  # polygons, or a run-length code
    more: Mapping[str, Any] = field(default_factory=dict)

    def find_box(self) -> np.ndarray | None:
        """The box, or the one around its polygons, or None."""
        if self.bbox is not None or not isinstance(self.segmentation, list) or not self.segmentation:
            return self.bbox
        return _surround(np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in self.segmentation]))

    def find_extent(self) -> np.ndarray | None:
        """The box, or the one around the labelled points, or None."""
        box, points = self.find_box(), self.labelled_points()
        return box if box is not None or not len(points) else _surround(points)

    def labelled_points(self) -> np.ndarray:
        """(n, 2) x, y of the points that are labelled, visible or hidden."""
        return np.zeros((0, 2)) if self.points is None else self.points[self.points[:, 2] > 0, :2]

    def find_mask(self, size: tuple[int, int]) -> np.ndarray | None:
        """(H, W) bool of the segmentation; None if there is none."""
        if not self.segmentation:
            return None
        if isinstance(self.segmentation, list):
            canvas = Image.new("1", size[::-1])
            for polygon in self.segmentation:
                ImageDraw.Draw(canvas).polygon(list(map(float, polygon)), fill=1)
            return np.array(canvas)
        return _decode_runs(self.segmentation, size)


@dataclass(frozen=True)
class Labels:
    """Labelled images of one place; every dict is in the order of its file."""

    where: str
    categories: dict[int, Category]
    images: dict[int, LabelledImage]
    objects: list[LabelledObject]

    def category(self, name: str) -> Category:
        """The category of that name; DatasetError lists the known ones."""
        for category in self.categories.values():
            if category.name == name:
                return category
        known = ", ".join(category.name for category in self.categories.values()) or "none"
        raise DatasetError(f"category {name!r} is unknown; {self.where} has {known}")

    def select(self, objects: Iterable[LabelledObject]) -> Labels:
        """Only these objects and their images."""
        objects = list(objects)
        kept = {thing.image_id for thing in objects}
        return replace(self, images={n: image for n, image in self.images.items() if n in kept}, objects=objects)


def read_labels(place: str | Path, image_root: str | Path | None = None, category: str | None = None) -> Labels:
    """The labels of a file, or of all label files (.json, .csv) directly in a folder.

    image_root: the folder of the pictures, by default that of each file or images/ in it. category: of points whose
    file (LabelMe, CSV) names none.
    """
    parts = [_read_file(path, image_root, category or NO_CATEGORY) for path in find_label_files(place)]
    for part in parts:
        _require_boxes_inside(part)
    return parts[0] if len(parts) == 1 else _merge(str(place), parts)


def find_label_files(place: str | Path) -> list[Path]:
    """The file itself, or the label files directly in a folder. MissingDataError if there is none."""
    place = Path(place)
    if not place.exists():
        raise MissingDataError(f"{place}: no such file or folder")
    files = sorted(p for p in place.iterdir() if p.suffix in (".json", ".csv")) if place.is_dir() else [place]
    if not files:
        raise MissingDataError(f"{place}: no label file there (COCO or LabelMe .json, or .csv)")
    return files


def _read_file(path: Path, image_root: str | Path | None, category: str) -> Labels:
    if path.suffix == ".csv":
        return _read_points(path, image_root, category)
    content = parse_json(read_text(path), path)
    if isinstance(content, dict) and "shapes" in content:
        return _read_labelme(Fields(str(path), content), image_root, category)
    if isinstance(content, dict) and {"images", "categories"} <= content.keys():
        return _read_coco(Fields(str(path), content), image_root)
    raise DatasetError(f"{path}: neither COCO's format ('images', 'categories', ...) nor LabelMe's ('shapes')")


def _find_image(labels: str, name: str, image_root: str | Path | None) -> Path:
    """The path of a picture of a file of labels, whether it is there or not."""
    folder = Path(image_root) if image_root else Path(labels).parent
    inside = folder / "images" / name
    return inside if inside.exists() and not (folder / name).exists() else folder / name


def _find_size(record: Fields, path: Path, height: str = "height", width: str = "width") -> tuple[int, int]:
    """(H, W) that a record says, or of the file."""
    said = record.values.get(height) and record.values.get(width)
    return record.size(height, width) if said else measure_image(path, record.where)


# ---- COCO ---------------------------------------------------------------------------------------------------------


def _read_coco(whole: Fields, image_root: str | Path | None) -> Labels:
    categories = {key: _read_category(key, record) for key, record in whole.by_id("categories").items()}
    names = Counter(category.name for category in categories.values())
    if doubled := [name for name, count in names.items() if count > 1]:
        raise DatasetError(f"{whole.where}: category {doubled[0]!r} stands there twice")
    images = {}
    for key, record in whole.by_id("images").items():
        name = record.text("file_name", "the name of an image file")
        path = _find_image(whole.where, name, image_root)
        images[key] = LabelledImage(key, name, str(path), _find_size(record, path))
    records = whole.by_id("annotations") if "annotations" in whole.values else {}
    objects = [_read_object(key, record, categories, images) for key, record in records.items()]
    objects = [thing for thing in objects if not thing.more.get("iscrowd")]
    return Labels(whole.where, categories, images, objects)


def _read_category(key: int, record: Fields) -> Category:
    name, names = record.text("name", "a name"), record.values.get("keypoints", [])
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names) or len(set(names)) < len(names):
        raise record.wrong("keypoints", "a list of names, each once")
    try:
        bones = tuple((int(a), int(b)) for a, b in record.values.get("skeleton") or [])
    except (TypeError, ValueError):
        raise record.wrong("skeleton", "a list of pairs of keypoints, counted from 1") from None
    if not all(1 <= end <= len(names) for bone in bones for end in bone):
        raise record.wrong("skeleton", f"pairs of keypoints, counted from 1 to {len(names)}")
    more = {k: v for k, v in record.values.items() if k not in ("id", "name", "keypoints", "skeleton")}
    return Category(key, name, tuple(names), bones, more)


def _read_object(
    key: int, record: Fields, categories: dict[int, Category], images: dict[int, LabelledImage]
) -> LabelledObject:
    category = _find(record, "category_id", categories, "categories")
    image = _find(record, "image_id", images, "images")
    names, points, bbox = category.keypoints, None, None
    if record.values.get("keypoints"):
        expected = f"{len(names)} times x, y, visibility, as its category names them"
        points = record.array("keypoints", (3 * len(names),), expected).reshape(-1, 3)
        if not np.isin(points[:, 2], (0, 1, 2)).all():
            raise record.wrong("keypoints", "x, y, and a visibility of 0, 1 or 2")
        points = _inside(points, image, names, record.where)
    if record.values.get("bbox"):
        x, y, width, height = record.array("bbox", (4,), "[x, y, width, height]")
        if not (width > 0 and height > 0):
            raise record.wrong("bbox", "[x, y, width, height] with an area")
        bbox = np.array([x, y, x + width, y + height])
    shape = record.values.get("segmentation") or None
    if isinstance(shape, list) and not all(isinstance(p, list) and len(p) >= 6 and len(p) % 2 == 0 for p in shape):
        raise record.wrong("segmentation", "polygons, each a list x1, y1, x2, y2, ..., or a run-length code")
    known = ("id", "image_id", "category_id", "keypoints", "num_keypoints", "bbox", "segmentation")
    more = {k: v for k, v in record.values.items() if k not in known}
    return LabelledObject(key, image.id, category.id, points, bbox, shape, more)


def _find(record: Fields, key: str, known: Mapping[int, T], what: str) -> T:
    value = record.get(key)
    if not isinstance(value, int) or value not in known:
        raise record.wrong(key, f"the id of one of the {len(known)} {what}")
    return known[value]


def _inside(points: np.ndarray, image: LabelledImage, names: Sequence[str], where: str) -> np.ndarray:
    """Labelled points within the image; DatasetError for one that lies outside."""
    height, width = image.size
    last = np.array([width - 1, height - 1])
    xy, labelled = points[:, :2], points[:, 2] > 0
    outside = labelled & ((xy < -LOST) | (xy > last + LOST)).any(axis=1)
    if outside.any():
        i = int(outside.argmax())
        raise DatasetError(
            f"{where}: keypoint {names[i]} ({xy[i, 0]:g}, {xy[i, 1]:g}) lies outside {image.file_name}, which is "
            f"{width} x {height} px"
        )
    return np.where(labelled[:, None], np.column_stack([xy.clip(0, last), points[:, 2]]), 0.0)


def _require_boxes_inside(labels: Labels) -> None:
    """DatasetError for a box that has no part in its image."""
    for thing in labels.objects:
        image, box = labels.images[thing.image_id], thing.find_box()
        height, width = image.size
        if box is not None and not ((box[:2] < (width, height)) & (box[2:] > 0)).all():
            raise DatasetError(
                f"{labels.where}: the box of annotation {thing.id} ({box.round(2).tolist()}) lies outside "
                f"{image.file_name}, which is {width} x {height} px"
            )


def _decode_runs(code: Any, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool of COCO's run-length code."""
    try:
        if isinstance(code["counts"], list):
            values = np.arange(len(code["counts"])) % 2 == 1
            mask = np.repeat(values, code["counts"]).reshape(code["size"], order="F")
        else:
            from pycocotools import mask as coder

            mask = coder.decode({**code, "counts": code["counts"].encode()}).astype(bool)
    except ImportError:
        raise DatasetError("compressed masks need the package pycocotools: pip install pycocotools") from None
    except Exception as error:  # whatever a damaged code leads to
        raise DatasetError(f"a segmentation is neither polygons nor a run-length code ({error})") from None
    if mask.shape != size:
        raise DatasetError(f"a mask is {mask.shape[1]} x {mask.shape[0]} px, but its image {size[1]} x {size[0]}")
    return mask


def describe_category(category: Category) -> dict[str, Any]:
    """The category's record in COCO's format."""
    bones = [list(bone) for bone in category.skeleton]
    known = {"id": category.id, "name": category.name, "keypoints": list(category.keypoints), "skeleton": bones}
    return known | dict(category.more)


def describe_image(image: LabelledImage) -> dict[str, Any]:
    return {"id": image.id, "file_name": image.file_name, "width": image.size[1], "height": image.size[0]}


def describe_object(thing: LabelledObject) -> dict[str, Any]:
    """The object's record; a box around the labelled points if it has none, as COCO's tools need one: of one point, a
    pixel."""
    record: dict[str, Any] = {"id": thing.id, "image_id": thing.image_id, "category_id": thing.category_id}
    bbox = thing.find_extent()
    if thing.points is not None:
        count = len(thing.labelled_points())
        record |= {"keypoints": _plain(thing.points.ravel()), "num_keypoints": count}
    if bbox is not None:
        sides = np.maximum(bbox[2:] - bbox[:2], 1)
        record |= {"bbox": _plain([*bbox[:2], *sides]), "area": round(float(sides.prod()), 2)}
    if thing.segmentation:
        record["segmentation"] = thing.segmentation
    return record | {"iscrowd": 0} | dict(thing.more)


def _surround(points: np.ndarray) -> np.ndarray:
    """The box (4,) around points (n, 2)."""
    return np.concatenate([points.min(axis=0), points.max(axis=0)])


def _plain(values: Iterable[float]) -> list[float]:
    """Numbers with two decimals at most, whole ones without."""
    return [int(v) if v == int(v) else round(float(v), 2) for v in values]


# ---- LabelMe and CSV ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Point:
    """A labelled point of a format whose files name no order, and the outline of its object."""

    where: str
    image: LabelledImage
    category: str
    group: str  # tells the objects of an image apart
    keypoint: str
    xyv: tuple[float, float, int]
    bbox: np.ndarray | None = None
    segmentation: list | None = None


def _read_labelme(whole: Fields, image_root: str | Path | None, category: str) -> Labels:
    """Points are keypoints by their labels; a rectangle or polygon of the same group_id is their box or mask."""
    name = whole.text("imagePath", "the name of an image file").replace("\\", "/")
    path = _find_image(whole.where, name, image_root)
    image = LabelledImage(1, name, str(path), _find_size(whole, path, "imageHeight", "imageWidth"))
    outlines: dict[str, tuple] = {}
    shapes = whole.records("shapes")
    for shape in shapes:
        if shape.values.get("shape_type") in ("rectangle", "polygon"):
            corners = shape.array("points", (None, 2), "a list of [x, y] points")
            outline = (_surround(corners), None) if len(corners) == 2 else (None, [corners.ravel().tolist()])
            outlines[str(shape.values.get("group_id"))] = str(shape.get("label")), *outline
    points = []
    for shape in shapes:
        if shape.values.get("shape_type") == "point":
            ((x, y),) = shape.array("points", (1, 2), "one [x, y] point").tolist()
            hidden = (shape.values.get("flags") or {}).get("occluded")
            group, keypoint = str(shape.values.get("group_id")), str(shape.get("label"))
            owner, *outline = outlines.get(group, (category,))
            xyv = (x, y, 1 if hidden else 2)
            points.append(_Point(shape.where, image, owner, group, keypoint, xyv, *outline))
    return _gather(whole.where, [image], points)


def _read_points(path: Path, image_root: str | Path | None, category: str) -> Labels:
    """A row per keypoint; visible: 0, 1 or 2, by default 2."""
    points, images = [], {}
    for row in read_csv(path, CSV_COLUMNS, CSV_OPTIONAL):
        name, keypoint = row.text("image", "a name"), row.text("keypoint", "a name")
        if name not in images:
            file = _find_image(str(path), name, image_root)
            images[name] = LabelledImage(len(images) + 1, name, str(file), measure_image(file, row.where))
        visible = row.whole("visible", 0, 2) if row.values.get("visible", "").strip() else 2
        x, y = (row.number(key) if visible else 0.0 for key in ("x", "y"))
        if math.isnan(x + y):
            raise DatasetError(f"{row.where}: x and y must be numbers")
        owner, group = (row.values.get(key, "").strip() for key in ("category", "object"))
        points.append(_Point(row.where, images[name], owner or category, group, keypoint, (x, y, visible)))
    return _gather(str(path), list(images.values()), points)


def _gather(where: str, images: Sequence[LabelledImage], points: Sequence[_Point]) -> Labels:
    """Labels of points; ids and the order of keypoints are those of their first appearance."""
    names: dict[str, dict[str, None]] = {}
    for point in points:
        names.setdefault(point.category, {})[point.keypoint] = None
    categories = {name: Category(i, name, tuple(kps)) for i, (name, kps) in enumerate(names.items(), start=1)}
    objects: dict[tuple, LabelledObject] = {}
    for point in points:
        category, key = categories[point.category], (point.image.id, point.group, point.category)
        if key not in objects:
            blank = np.zeros((len(category.keypoints), 3))
            ids = len(objects) + 1, point.image.id, category.id
            objects[key] = LabelledObject(*ids, blank, point.bbox, point.segmentation)
        place = category.keypoints.index(point.keypoint)
        if objects[key].points[place, 2]:
            raise DatasetError(f"{point.where}: keypoint {point.keypoint} of this object stands there twice")
        objects[key].points[place] = _inside(np.array([point.xyv]), point.image, [point.keypoint], point.where)[0]
    by_id = {category.id: category for category in categories.values()}
    return Labels(where, by_id, {image.id: image for image in images}, list(objects.values()))


def _merge(where: str, parts: Sequence[Labels]) -> Labels:
    """The labels of several files, with ids of their own. Keypoints of a category are joined by their names."""
    categories: dict[str, Category] = {}
    for part in parts:
        for category in part.categories.values():
            known = categories.get(category.name) or replace(category, id=len(categories) + 1)
            added = tuple(name for name in category.keypoints if name not in known.keypoints)
            categories[category.name] = replace(known, keypoints=known.keypoints + added)
    images: dict[int, LabelledImage] = {}
    objects: list[LabelledObject] = []
    for part in parts:
        before = len(images)
        for number, image in enumerate(part.images.values(), start=before + 1):
            images[number] = replace(image, id=number)
        numbers = dict(zip(part.images, range(before + 1, len(images) + 1), strict=True))
        for thing in part.objects:
            old, points = part.categories[thing.category_id], None
            new = categories[old.name]
            if thing.points is not None:
                points = np.zeros((len(new.keypoints), 3))
                points[[new.keypoints.index(name) for name in old.keypoints]] = thing.points
            ids = {"id": len(objects) + 1, "image_id": numbers[thing.image_id], "category_id": new.id}
            objects.append(replace(thing, points=points, **ids))
    return Labels(where, {category.id: category for category in categories.values()}, images, objects)


def _pair_names(names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of names that differ only in left and right."""
    pairs = []
    for name in names:
        other = _SIDES.sub(_swap, name)
        if other != name and other in names:
            pairs.append((name, other))
    return pairs


def _swap(match: re.Match) -> str:
    word = match[0]
    other = _OTHER[word.lower()]
    return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other
