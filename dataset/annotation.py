"""Labelled images: categories with named keypoints, and the objects of images; COCO's format, LabelMe's and CSV.

Points are (x, y) px of the upright image as the file says them, boxes (x1, y1, x2, y2), sizes (H, W). What is missing,
of the wrong kind or there twice is a DatasetError that names file and record.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from dataset.error import DatasetError, MissingDataError
from dataset.parse import Fields, measure_image, read_csv, read_text

LOST = 1.0  # px that a labelled point may lie outside its image; it is moved to the border
CSV_COLUMNS, CSV_OPTIONAL = ("image", "keypoint", "x", "y"), ("category", "object", "visible")
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
    try:
        content = json.loads(read_text(path))
    except DatasetError:
        raise
    except (RecursionError, ValueError) as error:
        raise DatasetError(f"{path}: not valid JSON ({error})") from None
    if isinstance(content, dict) and "shapes" in content:
        return _read_labelme(Fields(str(path), content), image_root, category)
    if isinstance(content, dict) and {"images", "categories"} <= content.keys():
        return _read_coco(Fields(str(path), content), image_root)
    raise DatasetError(f"{path}: neither COCO's format ('images', 'categories', ...) nor LabelMe's ('shapes')")


# ---- COCO ---------------------------------------------------------------------------------------------------------


def _read_coco(whole: Fields, image_root: str | Path | None) -> Labels:
    categories = {key: _read_category(key, record) for key, record in _by_id(whole, "categories")}
    names = [category.name for category in categories.values()]
    if doubled := {name for name in names if names.count(name) > 1}:
        raise DatasetError(f"{whole.where}: category {min(doubled)!r} stands there twice")
    images = {key: _read_image(key, record, image_root) for key, record in _by_id(whole, "images")}
    objects = [_read_object(key, record, categories, images) for key, record in _by_id(whole, "annotations", True)]
    objects = [thing for thing in objects if not thing.more.get("iscrowd")]
    return Labels(whole.where, categories, images, objects)


def _by_id(whole: Fields, part: str, optional: bool = False) -> Iterator[tuple[int, Fields]]:
    """(id, record) of a list's records; DatasetError for an id that is there twice."""
    records, seen = whole.values.get(part, []) if optional else whole.get(part), set()
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise whole.wrong(part, "a list of objects")
    for number, values in enumerate(records):
        record = Fields(f"{whole.where}, {part}[{number}]", values)
        key = record.whole("id", -(2**62), 2**62)
        if key in seen:
            raise DatasetError(f"{record.where}: id {key} stands there twice")
        seen.add(key)
        yield key, record


def _read_category(key: int, record: Fields) -> Category:
    name, names = record.get("name"), record.values.get("keypoints", [])
    if not isinstance(name, str) or not name:
        raise record.wrong("name", "a name")
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names) or len(set(names)) < len(names):
        raise record.wrong("keypoints", "a list of names, each once")
    skeleton = record.values.get("skeleton") or []
    try:
        bones = tuple((int(a), int(b)) for a, b in skeleton)
    except (TypeError, ValueError):
        raise record.wrong("skeleton", "a list of pairs of keypoints, counted from 1") from None
    if not all(1 <= end <= len(names) for bone in bones for end in bone):
        raise record.wrong("skeleton", f"pairs of keypoints, counted from 1 to {len(names)}")
    more = {k: v for k, v in record.values.items() if k not in ("id", "name", "keypoints", "skeleton")}
    return Category(key, name, tuple(names), bones, more)


def _read_image(key: int, record: Fields, image_root: str | Path | None) -> LabelledImage:
    name = record.get("file_name")
    if not isinstance(name, str) or not name.strip():
        raise record.wrong("file_name", "the name of an image file")
    path = _find_image(record.where.rpartition(", images[")[0], name, image_root)
    if "width" in record.values and "height" in record.values:
        size = tuple(record.whole(side, 1, 10**6) for side in ("height", "width"))
    else:
        size = measure_image(path, record.where)
    return LabelledImage(key, name, str(path), size)


def _find_image(where: str, name: str, image_root: str | Path | None) -> Path:
    """The path of a picture, whether it is there or not."""
    folder = Path(image_root) if image_root else Path(where).parent
    path = folder / name
    return folder / "images" / name if not path.exists() and (folder / "images" / name).exists() else path


def _read_object(key: int, record: Fields, categories: dict, images: dict) -> LabelledObject:
    category_id, image_id = (_find(record, name, known) for name, known in _references(categories, images))
    names, points, bbox = categories[category_id].keypoints, None, None
    if record.values.get("keypoints"):
        count = len(names)
        points = record.array("keypoints", (3 * count,), f"{count} times x, y, visibility, as its category names them")
        points = points.reshape(-1, 3)
        if not np.isin(points[:, 2], (0, 1, 2)).all():
            raise record.wrong("keypoints", "x, y, and a visibility of 0, 1 or 2")
        points = _inside(points, images[image_id], names, record.where)
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
    return LabelledObject(key, image_id, category_id, points, bbox, shape, more)


def _references(categories: dict, images: dict) -> tuple:
    return ("category_id", categories), ("image_id", images)


def _find(record: Fields, key: str, known: Mapping[int, Any]) -> int:
    value = record.get(key)
    if not isinstance(value, int) or value not in known:
        raise record.wrong(key, f"the id of one of the {len(known)} {'categories' if 'cat' in key else 'images'}")
    return value


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
    return {
        "id": category.id,
        "name": category.name,
        "keypoints": list(category.keypoints),
        "skeleton": bones,
    } | dict(category.more)


def describe_image(image: LabelledImage) -> dict[str, Any]:
    return {"id": image.id, "file_name": image.file_name, "width": image.size[1], "height": image.size[0]}


def describe_object(thing: LabelledObject) -> dict[str, Any]:
    """The object's record; a box around the labelled points if it has none, as COCO's tools need one."""
    record: dict[str, Any] = {"id": thing.id, "image_id": thing.image_id, "category_id": thing.category_id}
    bbox = thing.find_extent()
    if thing.points is not None:
        count = len(thing.labelled_points())
        record |= {"keypoints": _plain(thing.points.ravel()), "num_keypoints": count}
    if bbox is not None:
        sides = bbox[2:] - bbox[:2]
        record |= {"bbox": _plain([*bbox[:2], *sides]), "area": round(float(sides.prod()), 2)}
    if thing.segmentation:
        record["segmentation"] = thing.segmentation
    return record | {"iscrowd": 0} | dict(thing.more)


def to_coco(labels: Labels, info: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The labels in COCO's format."""
    return {
        "info": dict(info or {}),
        "licenses": [],
        "categories": [describe_category(category) for category in labels.categories.values()],
        "images": [describe_image(image) for image in labels.images.values()],
        "annotations": [describe_object(thing) for thing in labels.objects],
    }


def _surround(points: np.ndarray) -> np.ndarray:
    """The box (4,) around points (n, 2)."""
    return np.concatenate([points.min(axis=0), points.max(axis=0)])


def _plain(values: Iterable[float]) -> list[float]:
    """Numbers with two decimals at most, whole ones without."""
    return [int(v) if v == int(v) else round(float(v), 2) for v in values]


# ---- LabelMe and CSV ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Point:
    """One labelled point of a format whose files name no order."""

    image: str
    size: tuple[int, int]
    path: str
    category: str
    group: str  # tells the objects of an image apart
    keypoint: str
    xyv: tuple[float, float, int]
    where: str


def _read_labelme(whole: Fields, image_root: str | Path | None, category: str) -> Labels:
    """Points are keypoints by their labels; a rectangle or polygon of the same group_id is their box or mask."""
    name = whole.get("imagePath")
    if not isinstance(name, str) or not name.strip():
        raise whole.wrong("imagePath", "the name of an image file")
    name = name.replace("\\", "/")
    path = _find_image(whole.where, name, image_root)
    if whole.values.get("imageWidth") and whole.values.get("imageHeight"):
        size = tuple(whole.whole(side, 1, 10**6) for side in ("imageHeight", "imageWidth"))
    else:
        size = measure_image(path, whole.where)
    shapes = whole.get("shapes")
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        raise whole.wrong("shapes", "a list of objects")
    records = [Fields(f"{whole.where}, shapes[{n}]", shape) for n, shape in enumerate(shapes)]
    outlines: dict[str, tuple[str, list]] = {}
    for record in records:
        if record.values.get("shape_type") in ("rectangle", "polygon"):
            corners = record.array("points", (None, 2), "a list of [x, y] points")
            outlines[str(record.values.get("group_id"))] = str(record.get("label")), corners.tolist()
    points = []
    for record in records:
        if record.values.get("shape_type") != "point":
            continue
        ((x, y),) = record.array("points", (1, 2), "one [x, y] point").tolist()
        group = str(record.values.get("group_id"))
        hidden = (record.values.get("flags") or {}).get("occluded")
        owner = outlines.get(group, (category, None))[0]
        points.append(
            _Point(
                name, size, str(path), owner, group, str(record.get("label")), (x, y, 1 if hidden else 2), record.where
            )
        )
    labels = _gather(whole.where, points)
    if not points:  # an image without labels is still an image
        return replace(labels, images={1: LabelledImage(1, name, str(path), size)})
    groups = list(dict.fromkeys((p.group, p.category) for p in points))
    objects = [_outline(o, outlines.get(group)) for o, (group, _) in zip(labels.objects, groups, strict=True)]
    return replace(labels, objects=objects)


def _outline(thing: LabelledObject, outline: tuple[str, list] | None) -> LabelledObject:
    if outline is None:
        return thing
    corners = np.array(outline[1])
    if len(corners) == 2:
        return replace(thing, bbox=_surround(corners))
    return replace(thing, segmentation=[corners.ravel().tolist()])


def _read_points(path: Path, image_root: str | Path | None, category: str) -> Labels:
    """A row per keypoint; visible: 0, 1 or 2, by default 2."""
    _, rows = read_csv(path, CSV_COLUMNS, CSV_OPTIONAL)
    points, files = [], {}
    for row in rows:
        name, keypoint = (str(row.get(key)).strip() for key in ("image", "keypoint"))
        if not name or not keypoint:
            raise DatasetError(f"{row.where}: image and keypoint must be given")
        if name not in files:
            file = _find_image(str(path), name, image_root)
            files[name] = str(file), measure_image(file, row.where)
        place, size = files[name]
        visible = row.whole("visible", 0, 2) if row.values.get("visible", "").strip() else 2
        x, y = (row.number(key) if visible else 0.0 for key in ("x", "y"))
        if math.isnan(x + y):
            raise DatasetError(f"{row.where}: x and y must be numbers")
        owner = str(row.values.get("category", "")).strip() or category
        group = str(row.values.get("object", "")).strip()
        points.append(_Point(name, size, place, owner, group, keypoint, (x, y, visible), row.where))
    return _gather(str(path), points)


def _gather(where: str, points: Sequence[_Point]) -> Labels:
    """Labels of points; ids and the order of keypoints are those of their first appearance."""
    names: dict[str, dict[str, None]] = {}
    for point in points:
        names.setdefault(point.category, {})[point.keypoint] = None
    categories = {i: Category(i, name, tuple(kps)) for i, (name, kps) in enumerate(names.items(), start=1)}
    by_name = {category.name: category for category in categories.values()}
    images: dict[str, LabelledImage] = {}
    objects: dict[tuple, LabelledObject] = {}
    for point in points:
        image = images.setdefault(point.image, LabelledImage(len(images) + 1, point.image, point.path, point.size))
        category = by_name[point.category]
        key = point.image, point.group, point.category
        blank = np.zeros((len(category.keypoints), 3))
        thing = objects.setdefault(key, LabelledObject(len(objects) + 1, image.id, category.id, blank))
        place = category.keypoints.index(point.keypoint)
        if thing.points[place, 2]:
            raise DatasetError(f"{point.where}: keypoint {point.keypoint} of this object stands there twice")
        thing.points[place] = _inside(np.array([point.xyv]), image, [point.keypoint], point.where)[0]
    return Labels(where, categories, {image.id: image for image in images.values()}, list(objects.values()))


def _merge(where: str, parts: Sequence[Labels]) -> Labels:
    """The labels of several files, with ids of their own. Keypoints of a category are joined by their names."""
    categories: dict[str, Category] = {}
    for part in parts:
        for category in part.categories.values():
            known = categories.get(category.name)
            if known is None:
                known = replace(category, id=len(categories) + 1)
            added = tuple(name for name in category.keypoints if name not in known.keypoints)
            categories[category.name] = replace(known, keypoints=known.keypoints + added)
    images, objects = {}, []
    for part in parts:
        numbers = {}
        for key, image in part.images.items():
            numbers[key] = len(images) + 1
            images[len(images) + 1] = replace(image, id=len(images) + 1)
        for thing in part.objects:
            old = part.categories[thing.category_id]
            new = categories[old.name]
            points = None
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
