"""Your own pairs: a list of pairs in CSV, or all or some pairs of images with keypoints in COCO's format."""

from __future__ import annotations

import hashlib
import logging
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from dataset.annotation import Category, read_labels
from dataset.benchmark import Benchmark
from dataset.error import DatasetError
from dataset.parse import Fields, is_file_name, measure_image, read_csv, refuse_marks
from dataset.pfwillow import tight_box
from dataset.record import ImageRef, Keypoints
from dataset.symmetry import Symmetry, build_symmetry
from dataset.table import PairTable, TableBuilder
from utils.progress import progress

SHARES = {"trn": 0.6, "val": 0.2, "test": 0.2}  # of the images of each category, of a file for all splits
ALL = "annotations.json"  # that file
POINTS_FILE = "keypoints.csv"
MOST = 10**6  # pairs of a category that are made or looked at
PAIR = ("source", "target", "category")
BOX = [f"{side}_{corner}" for side in ("src", "trg") for corner in ("x1", "y1", "x2", "y2")]
POINT = ["keypoint", "src_x", "src_y", "trg_x", "trg_y"]
logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Shown:
    """An object with keypoints in an image; px."""

    where: str  # file and object, for messages
    image: str  # below images/
    size: tuple[int, int]  # (H, W), as the file says
    category: str
    names: tuple[str, ...]  # of all K keypoints of the category
    kps: np.ndarray  # (K, 2) float64; NaN where not labelled
    bbox: np.ndarray  # (4,) float64; NaN if there is none

    def seen(self) -> Keypoints:
        """Those that are labelled."""
        there = ~np.isnan(self.kps).any(axis=1)
        return Keypoints(tuple(name for name, shown in zip(self.names, there, strict=True) if shown), self.kps[there])


class Custom(Benchmark):
    """A folder of your own; docs/own_data.md shows its files.

    Of a COCO file every ordered pair of images of one category is taken, or so many of them at random as
    `pairs_per_category` says, with the keypoints that both show. An image with several objects of a category is left
    out: which of them a keypoint belongs to would be a guess.
    """

    name = "custom"
    FOLDER = "custom"
    LAYOUT = """\
custom/                      another name by DATASET.FOLDER
  images/...                 pictures, in folders as you like
and one of
  annotations.json           COCO keypoints of all images, which are divided into trn, val, test (60, 20, 20 %)
  {trn,val,test}.json        COCO keypoints of each split's images
  {trn,val,test}_pairs.csv   source,target,category[,src_x1,src_y1,src_x2,src_y2,trg_x1,trg_y1,trg_x2,trg_y2]
                             and a row per keypoint: ,keypoint,src_x,src_y,trg_x,trg_y
                             or a row per pair, and keypoints.csv beside: image,keypoint,x,y"""
    ADVICE = "docs/own_data.md shows every file"
    threshold_rule = "bbox"

    @property
    def max_kps(self) -> int:
        """Of the fullest pair or image."""
        return int(max(np.diff(starts).max(initial=1) for starts in (self._table.kps_start, self._table.seen_start)))

    def split_files(self) -> list[Path]:
        found = self._find_files(self.split)
        return found or [self.root / f"{self.split}.json"]  # which is not there, and will be said so

    def annotation_folders(self) -> list[Path]:
        return [self.root / "images"]

    def find_categories(self) -> list[str]:
        """Sorted categories of all files there are, so that every split counts them alike."""
        files = {path for split in self.SPLITS for path in self._find_files(split) if path.name != POINTS_FILE}
        found = {name for path in files for name in read_categories(path)}
        for name in found:
            if not is_file_name(name):
                raise DatasetError(f"{self.root}: the category {name!r} must be a word that can name a file")
        return sorted(found)

    @cached_property
    def _labelled(self) -> dict[str, Category]:
        """Categories of the COCO file by name; none of a list."""
        path = self.split_files()[0]
        found = {} if path.suffix == ".csv" else read_labels(path, path.parent / "images").categories
        return {category.name: category for category in found.values()}

    def find_ids(self, category: str, names: Iterable[str]) -> list[int]:
        """Places of the names in their category; those that are numbers in a list."""
        if category not in self._labelled:
            return super().find_ids(category, names)
        return list(map(self._labelled[category].keypoints.index, names))

    @cached_property
    def symmetries(self) -> Mapping[str, Symmetry]:
        """Of categories whose names, or "flip_pairs", tell left from right; keypoints that change places are alike."""
        flips = {name: category.find_flip() for name, category in self._labelled.items()}
        pairs = {name: [(i, j) for i, j in enumerate(flip) if i < j] for name, flip in flips.items() if flip}
        found = {name: build_symmetry(len(flips[name]), both, both) for name, both in pairs.items()}
        return {**found, **super().symmetries}

    def read(self) -> PairTable:
        return self._read_list() if self.split_files()[0].suffix == ".csv" else self._read_objects()

    def _find_files(self, split: str) -> list[Path]:
        """Those of a split: the one that lists images or pairs, and that of the keypoints of a list."""
        names = f"{split}_pairs.csv", f"{split}.json", ALL
        found = [path for path in (self.root / name for name in names) if path.is_file()]
        if len(found) > 1:
            raise DatasetError(f"{self.root} holds {found[0].name} and {found[1].name}: which one is meant? Keep one")
        points = self.root / POINTS_FILE
        return [*found, points] if found and found[0].suffix == ".csv" and points.is_file() else found

    def _ref(self, image: str, category: str, where: str, said: tuple[int, int] | None = None) -> ImageRef:
        """The image; said: (H, W) that its annotation says."""
        path = f"images/{image}"
        size = measure_image(self.root / path, where)
        if said not in (None, size):
            raise DatasetError(f"{where}: {image} has the size (H, W) = {size}, its annotation says {said}")
        return ImageRef(f"{category}-{image}", path, category, size)

    # Pairs of a COCO file.

    def _read_objects(self) -> PairTable:
        path = self.split_files()[0]
        objects = read_shown(path)
        if path.name == ALL:
            here = divide(objects, self.split)
            objects = [found for found in objects if found.image in here]
        counts = Counter((found.image, found.category) for found in objects)
        if crowded := sum(count > 1 for count in counts.values()):
            why = "are left out, for they show several objects of a category with keypoints"
            logger.warning("%s: %d of %d images %s", path, crowded, len(counts), why)
        builder = TableBuilder(self.threshold_rule, MOST)
        by_category = defaultdict(list)
        for found in objects:
            if counts[found.image, found.category] == 1:
                by_category[found.category].append(found)
        for category, members in sorted(by_category.items()):
            self._add_category(builder, category, members, path)
        return builder.build()

    def _add_category(self, builder: TableBuilder, category: str, members: list[Shown], path: Path) -> None:
        total, wanted = len(members) * (len(members) - 1), self.pairs_per_category
        if total > MOST and not wanted:
            what = f"{len(members)} images of {category} are {total} pairs"
            raise DatasetError(f"{path}: {what}; choose how many: DATASET.PAIRS")
        refs = [self._ref(found.image, category, found.where, found.size) for found in members]
        places = [builder.add_image(ref, o.where, o.seen()) for ref, o in zip(refs, members, strict=True)]
        numbers = range(total)
        if wanted:  # in a random order that never changes
            numbers = random.Random(f"{self.name} {self.split} {category}").sample(numbers, min(total, MOST))
        added = 0
        for number in progress(numbers, f"pairs of {category}", unit="pairs"):
            src, trg = divmod(number, len(members) - 1)
            trg += trg >= src  # all but the image itself
            added += self._add_objects(builder, number, [members[src], members[trg]], [places[src], places[trg]])
            if wanted and added == wanted:
                break

    def _add_objects(self, builder: TableBuilder, number: int, pair: Sequence[Shown], places: Sequence[int]) -> bool:
        """Whether the two have keypoints in common, and so make a pair."""
        both = ~np.isnan([found.kps for found in pair]).any(axis=(0, 2))
        if not both.any():
            return False
        kps = [found.kps[both] for found in pair]
        names = [name for name, shown in zip(pair[0].names, both, strict=True) if shown]
        boxes = [self._box(found.bbox, points, found.where) for found, points in zip(pair, kps, strict=True)]
        pair_id = _name_pair(number, [found.image for found in pair], pair[0].category)
        builder.add_pair(pair_id, pair[0].category, places, kps, names, boxes, pair[1].where)
        return True

    def _box(self, box: np.ndarray, kps: np.ndarray, where: str) -> np.ndarray:
        """The box (4,) or, where none is needed nor given, that around the points."""
        if not np.isnan(box).any():
            return box
        if "bbox" in self.threshold_rule:
            raise DatasetError(f"{where}: no box to measure PCK by; add boxes, or set DATASET.THRESHOLD image or kps")
        return tight_box(kps)

    # Pairs of a CSV file.

    def _read_list(self) -> PairTable:
        path, *points_file = self.split_files()
        rows = read_list(path)
        own_points, own_boxes = (has_columns(path, rows, names) for names in (POINT, BOX))
        if own_points == bool(points_file):
            raise DatasetError(f"{path}: keypoints belong into {POINTS_FILE} or into the columns {', '.join(POINT)}")
        known = read_points(points_file[0]) if points_file else {}
        groups = defaultdict(list)
        for row in rows:
            images = tuple(str(row.path(side, "images/", 1)) for side in PAIR[:2])
            groups[images, row.text("category", "a name")].append(row)
        builder, places = TableBuilder(self.threshold_rule, MOST), {}
        pairs = progress(groups.items(), f"indexing {path.name}", len(groups), unit="pairs")
        for number, ((images, category), group) in enumerate(pairs):
            where = group[0].where
            kps, names = read_rows(group) if own_points else find_common(group, [known.get(i, {}) for i in images])
            boxes = read_boxes(group) if own_boxes else np.full((2, 4), np.nan)
            boxes = [self._box(box, points, where) for box, points in zip(boxes, kps, strict=True)]
            for image in images:
                if (image, category) not in places:
                    places[image, category] = builder.add_image(self._ref(image, category, where), where)
            both = [places[image, category] for image in images]
            builder.add_pair(_name_pair(number, images, category), category, both, kps, names, boxes, where)
        return builder.build()


def read_categories(path: Path) -> set[str]:
    """Of the pairs of a list, or of the objects with keypoints of a COCO file."""
    if path.suffix == ".csv":
        return {row.text("category", "a name") for row in read_list(path)}
    return {found.category for found in read_shown(path)}


def read_shown(path: Path) -> list[Shown]:
    """The objects of a COCO file that have a labelled keypoint (visibility 1 or 2), in its order."""
    labels = read_labels(path, path.parent / "images")
    names: dict[str, int] = {}
    for image in labels.images.values():
        Fields(f"{path}, image {image.id}", {"file_name": image.file_name}).path("file_name", "images/", 1)
        if names.setdefault(image.file_name, image.id) != image.id:
            raise DatasetError(
                f"{path}: {image.file_name} is the file of images {names[image.file_name]} and {image.id}"
            )
    found = []
    for thing in labels.objects:
        if thing.points is None or not (labelled := thing.points[:, 2:] > 0).any():
            continue
        image, category = labels.images[thing.image_id], labels.categories[thing.category_id]
        kps, box = np.where(labelled, thing.points[:, :2], np.nan), thing.find_box()
        box = np.full(4, np.nan) if box is None else box
        where = f"{path}, annotation {thing.id}"
        found.append(Shown(where, image.file_name, image.size, category.name, category.keypoints, kps, box))
    return found


def read_list(path: Path) -> list[Fields]:
    """The rows of a list of pairs."""
    return read_csv(path, PAIR, (*BOX, *POINT))


def has_columns(path: Path, rows: Sequence[Fields], names: Sequence[str]) -> bool:
    """Whether rows have all of these columns, which go together, or none of them."""
    found = [name for name in names if rows and name in rows[0].values]
    if found and len(found) < len(names):
        raise DatasetError(f"{path}: {', '.join(names)} go together; the header has only {', '.join(found)}")
    return bool(found)


def read_rows(group: Sequence[Fields]) -> tuple[np.ndarray, list[str]]:
    """Keypoints (source and target, N, 2) and their names, of a pair's rows; without those with an empty cell."""
    kps: dict[str, np.ndarray] = {}
    for row in group:
        if (name := row.text("keypoint", "a name")) in kps:
            raise DatasetError(f"{row.where}: keypoint {name} of this pair stands there already")
        kps[name] = np.reshape([row.number(column) for column in POINT[1:]], (2, 2))
        refuse_marks(kps[name], row.where, [name] * 2, "an empty cell")
    names = [name for name, points in kps.items() if not np.isnan(points).any()]
    return np.reshape([kps[name] for name in names], (-1, 2, 2)).swapaxes(0, 1), names


def read_points(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """{image: {keypoint: (2,) px}} of a file with a row for each point of each image."""
    found: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
    for row in read_csv(path, ("image", "keypoint", "x", "y")):
        image, name = str(row.path("image", "images/", 1)), row.text("keypoint", "a name")
        if name in found[image]:
            raise DatasetError(f"{row.where}: keypoint {name} of {image} stands there already")
        found[image][name] = np.array([row.number("x"), row.number("y")])
        refuse_marks(found[image][name][None], row.where, [name], "an empty cell")
    return found


def find_common(group: Sequence[Fields], points: Sequence[dict[str, np.ndarray]]) -> tuple[np.ndarray, list[str]]:
    """Keypoints (source and target, N, 2) that both images of a pair have, and their names."""
    if len(group) > 1:
        raise DatasetError(f"{group[1].where}: the pair stands there already ({group[0].where})")
    absent = np.full(2, np.nan)
    names = [name for name, point in points[0].items() if not np.isnan([point, points[1].get(name, absent)]).any()]
    return np.reshape([[side[name] for name in names] for side in points], (2, -1, 2)), names


def read_boxes(group: Sequence[Fields]) -> np.ndarray:
    """Boxes (source and target, 4), the same in all rows of a pair; NaN where a cell is empty."""
    boxes = np.array([[row.number(column) for column in BOX] for row in group])
    for row, box in zip(group, boxes, strict=True):
        if not np.array_equal(box, boxes[0], equal_nan=True):
            raise DatasetError(f"{row.where}: another box than in {group[0].where}, of the same pair")
    return boxes[0].reshape(2, 4)


def divide(objects: Sequence[Shown], split: str) -> set[str]:
    """The images of a split: a share of each category's, by the hash of their names, so always the same ones."""
    category = {found.image: found.category for found in reversed(objects)}  # an image counts for its first object
    members = defaultdict(list)
    for image in sorted(category, key=lambda name: hashlib.sha256(name.encode()).hexdigest()):
        members[category[image]].append(image)
    bounds = np.cumsum([0, *SHARES.values()])
    place = list(SHARES).index(split)
    return {
        image
        for images in members.values()
        for image in images[round(bounds[place] * len(images)) : round(bounds[place + 1] * len(images))]
    }


def _name_pair(number: int, images: Sequence[str], category: str) -> str:
    stems = [image.rpartition(".")[0].replace("/", "+") for image in images]
    return f"{number:06d}-{'-'.join(stems)}:{category}"
