"""Keypoints of labelled images carried to others: `Transfer(matcher, references)(images)`."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from config import change_config
from dataset import DatasetError, MissingDataError
from dataset.annotation import Category, LabelledImage, LabelledObject, Labels, read_labels
from dataset.record import mirror_kps
from engine.check import check_config
from sd4match.error import CategoryError
from sd4match.matcher import ImageFeatures, Matcher
from utils.image import MIN_SIDE, ImageError, ImageSource, Picture, read_image

SUFFIXES = frozenset(Image.registered_extensions()) - {".pdf", ".ps", ".eps"}  # of the pictures in a folder
MOST_JUDGED = 50  # references of each category on which TRANSFER.VISIBLE is chosen
Record = dict[str, Any]  # what is kept of a target: JSON values


@dataclass(frozen=True, eq=False)
class Target:
    """An image to label, and the objects in it: their categories, and their boxes or masks if they are known."""

    id: int  # of the image
    name: str  # no two of a job are alike
    image: ImageSource
    objects: Sequence[LabelledObject]
    size: tuple[int, int] | None = None  # (H, W) that the boxes and masks refer to
    reference: int | None = None  # the references' image that it is: its own objects are not asked


@dataclass(frozen=True, eq=False)
class Cut:
    """What the networks see of an object: a part of its image, mirrored or not."""

    picture: Picture
    corner: np.ndarray  # (2,) x, y of its first pixel in the image
    mask: np.ndarray | None  # (H, W) bool, of the part
    mirrored: bool = False

    def to_cut(self, points: np.ndarray) -> np.ndarray:
        """Points (N, 2) px of the image -> px of the part."""
        points = points - self.corner
        return mirror_kps(points, self.picture.size[1]) if self.mirrored else points

    def mirror(self) -> Cut:
        """The same part, mirrored left to right."""
        mask = None if self.mask is None else self.mask[:, ::-1]
        picture = replace(self.picture, image=ImageOps.mirror(self.picture.image))
        return Cut(picture, self.corner, mask, not self.mirrored)


@dataclass(frozen=True, eq=False)
class View:
    """A reference as it is, or mirrored, with its features."""

    thing: LabelledObject
    cut: Cut
    features: ImageFeatures
    keypoints: np.ndarray  # (n,) indices of its labelled keypoints in its category
    points: np.ndarray  # (n, 2) float32, px of the cut


class Transfer:
    """Carries the keypoints of labelled references to other images.

    `match` gives what every reference says of every target, `combine` makes labels of it: the first runs the networks,
    the second does not, and what it depends on (TRANSFER.COMBINE, RADIUS, VISIBLE) can be changed afterwards.
    """

    def __init__(self, matcher: Matcher, references: Labels | str | Path, **options: Any) -> None:
        """references: labels, or a file or folder of them; options: keys of the config section TRANSFER, lower case.

        Raises DatasetError, MissingDataError, ImageError, ConfigError, CategoryError.
        """
        self.matcher = matcher
        cfg = change_config(matcher.config, {f"TRANSFER.{name.upper()}": value for name, value in options.items()})
        check_config(cfg, training=False)
        self.settings, self.alpha = cfg.TRANSFER, cfg.EVAL.PICTURE_ALPHA
        self.labels = choose_references(references if isinstance(references, Labels) else read_labels(references))
        self.references = self._encode_references()

    def __call__(self, images: Labels | str | Path | Sequence[ImageSource], category: str | None = None) -> Labels:
        """The labels of a folder's images, of a list of images, or of the objects of other labels (their boxes, masks).

        category: of images whose objects are not given; see `find_targets`. Raises ImageError for an unusable image.
        """
        targets = find_targets(self.labels, images, category)
        visible = self.find_threshold()[0]
        found, objects = {}, []
        for target, record in zip(targets, self.match(targets), strict=True):
            if "error" in record:
                raise ImageError(record["error"])
            found[target.id] = LabelledImage(target.id, target.name, str(target.image), tuple(record["size"]))
            objects += self.label(target, record, visible)
        return Labels("transfer", self.labels.categories, found, objects)

    def match(self, targets: Iterable[Target]) -> Iterator[Record]:
        """What each reference says of each target, in order; images are read ahead, a batch at a time.

        {"name", "size": [H, W], "objects": [{"side": longer side of the cut, "votes": [{"reference": id, "mirrored":
        0 | 1, "points": [[keypoint, x, y, confidence], ...]}, ...]}, ...]}, or {"name", "error"} for an unusable image.
        """
        size, targets = self.matcher.config.EVAL.BATCH_SIZE, iter(targets)
        with ThreadPoolExecutor() as pool:
            batches = iter(lambda: [(t, pool.submit(_read, t)) for t in itertools.islice(targets, size)], [])
            ahead = next(batches, [])
            while ahead:
                batch, ahead = ahead, next(batches, [])
                yield from self._match_batch([(target, future.result()) for target, future in batch])

    def find_threshold(self, labelled: Labels | None = None) -> tuple[float, int]:
        """`choose_visible` by what is found on `find_judged`."""
        judged = self.find_judged(labelled)
        return self.choose_visible(judged, self.match(judged))

    def find_judged(self, labelled: Labels | None = None) -> list[Target]:
        """Images on which the threshold of visibility is chosen: `labelled`, by default (some of) the references.

        None if TRANSFER.VISIBLE says it.
        """
        if self.settings.VISIBLE >= 0:
            return []
        if labelled is not None:
            return [replace(target, name=f"labelled {target.name}") for target in targets_of(labelled, self.labels)]
        chosen = []
        for members in self.references.values():
            places = np.linspace(0, len(members) - 1, min(len(members), MOST_JUDGED)).round().astype(int)
            chosen += [members[place][0].thing for place in places]
        part = self.labels.select(chosen)
        images = {key: replace(image, file_name=f"reference {key}") for key, image in part.images.items()}
        targets = targets_of(replace(part, images=images), self.labels)
        return [replace(target, reference=target.id) for target in targets]

    def choose_visible(self, judged: Sequence[Target], records: Iterable[Record]) -> tuple[float, int]:
        """The confidence from which a point counts as visible, and the number of points that it was chosen on.

        TRANSFER.VISIBLE, or the one that best tells right from wrong on the `judged` images; 0 if there is nothing to
        choose by. Right: labelled in the target, and found within EVAL.PICTURE_ALPHA of its box.
        """
        if self.settings.VISIBLE >= 0:
            return self.settings.VISIBLE, 0
        confidence, right = [np.zeros(0)], [np.zeros(0, bool)]
        for target, record in zip(judged, records, strict=True):
            for thing, votes in zip(target.objects, record.get("objects", []), strict=False):
                if thing.points is None:
                    continue
                found = self.combine(votes, len(thing.points))
                known = found[:, 2] > 0
                near = np.linalg.norm(found[:, :2] - thing.points[:, :2], axis=1) <= self.alpha * measure(thing)
                confidence.append(found[known, 2])
                right.append((near & (thing.points[:, 2] > 0))[known])
        confidence, right = np.concatenate(confidence), np.concatenate(right)
        return choose_threshold(confidence, right), len(right)

    def combine(self, votes: Mapping[str, Any], count: int) -> np.ndarray:
        """(count, 3) x, y, confidence of an object's keypoints; 0 where no reference knows one."""
        by_point: dict[int, list] = defaultdict(list)
        for vote in votes["votes"]:
            for keypoint, *found in vote["points"]:
                by_point[keypoint].append(found)
        result = np.zeros((count, 3))
        for keypoint, found in by_point.items():
            found = np.array(found, np.float64)
            if self.settings.COMBINE == "vote":
                result[keypoint] = vote_robustly(found, self.settings.RADIUS * votes["side"])
            else:
                result[keypoint] = found[found[:, 2].argmax()]
        return result

    def label(self, target: Target, record: Record, visible: float) -> list[LabelledObject]:
        """The target's objects with the keypoints of its record; from the confidence `visible` on they are shown."""
        pairs = zip(target.objects, record["objects"], strict=True)
        counts = {key: len(category.keypoints) for key, category in self.labels.categories.items()}
        return [label(thing, self.combine(votes, counts[thing.category_id]), visible) for thing, votes in pairs]

    def _encode_references(self) -> dict[int, list[list[View]]]:
        """By category, the views of each reference."""
        parts = []
        for thing in self.labels.objects:
            image, category = self.labels.images[thing.image_id], self.labels.categories[thing.category_id]
            cut = self._cut(read_sized(image.path, image.size), thing)
            parts.append((thing, cut, range(len(category.keypoints))))
            if self.settings.MIRROR and (flip := category.find_flip()):
                parts.append((thing, cut.mirror(), flip))
        names = [self.labels.categories[thing.category_id].name for thing, *_ in parts]
        features = self.matcher.encode_many([cut.picture for _, cut, _ in parts], names)
        found: dict[int, dict[int, list[View]]] = defaultdict(lambda: defaultdict(list))
        for (thing, cut, order), feature in zip(parts, features, strict=True):
            keypoints = np.flatnonzero(thing.points[:, 2] > 0)
            points = cut.to_cut(thing.points[keypoints, :2]).clip(0, np.array(cut.picture.size[::-1]) - 1)
            view = View(thing, cut, feature, np.array(order)[keypoints], points.astype(np.float32))
            found[thing.category_id][thing.id].append(view)
        return {category_id: list(members.values()) for category_id, members in found.items()}

    def _cut(self, picture: Picture, thing: LabelledObject) -> Cut:
        box, mask = thing.find_box(), thing.find_mask(picture.size)
        if box is None and mask is not None and mask.any():
            box = np.array(Image.fromarray(mask).getbbox())
        return cut_out(picture, box if self.settings.CROP else None, mask, self.settings.MARGIN)

    def _match_batch(self, batch: Sequence[tuple[Target, Picture | ImageError]]) -> list[Record]:
        """The targets' records; the objects of all of them go through the networks together."""
        records, asked = [], []  # asked: (target, category, cut, where its votes go) of each object
        for target, picture in batch:
            if isinstance(picture, ImageError):
                records.append({"name": target.name, "error": str(picture)})
                continue
            objects = []
            for thing in target.objects:
                cut, votes = self._cut(picture, thing), []
                objects.append({"side": max(cut.picture.size), "votes": votes})
                asked.append((target, thing.category_id, cut, votes))
            records.append({"name": target.name, "size": list(picture.size), "objects": objects})
        names = [self.labels.categories[category_id].name for _, category_id, *_ in asked]
        features = self.matcher.encode_many([cut.picture for *_, cut, _ in asked], names)
        for own, members in self.references.items():
            for views in members:
                source = views[0].thing.image_id
                chosen = [
                    (cut, feature, votes)
                    for (target, category_id, cut, votes), feature in zip(asked, features, strict=True)
                    if category_id == own and target.reference != source
                ]
                found = self._ask(views, [cut for cut, *_ in chosen], [feature for _, feature, _ in chosen])
                for (*_, votes), vote in zip(chosen, found, strict=True):
                    votes.append(vote)
        return records

    def _ask(self, views: Sequence[View], cuts: Sequence[Cut], features: Sequence[ImageFeatures]) -> list[Record]:
        """A reference's vote for each cut, by the view of it that matches the cut better."""
        best: list[Record] = [{} for _ in cuts]
        score = np.full(len(cuts), -1.0)
        for view in views:
            pairs = self.matcher.pairs(view.features, features)
            for i, (pair, cut) in enumerate(zip(pairs, cuts, strict=True)):
                found = pair.match(view.points, src_mask=view.cut.mask, trg_mask=cut.mask)
                if found.confidence.mean() > score[i]:
                    score[i] = found.confidence.mean()
                    confidence = found.confidence.clip(min=1e-4)  # 0 stands for no prediction
                    rows = zip(view.keypoints, found.points + cut.corner, confidence, strict=True)
                    points = [
                        [int(k), round(float(x), 2), round(float(y), 2), round(float(c), 4)] for k, (x, y), c in rows
                    ]
                    best[i] = {"reference": view.thing.id, "mirrored": int(view.cut.mirrored), "points": points}
        return best


# ---- what is to be labelled ---------------------------------------------------------------------------------------


def find_targets(
    references: Labels, images: Labels | str | Path | Sequence[ImageSource], category: str | None = None
) -> list[Target]:
    """The images of a folder (at any depth), a list of images, or the objects of other labels.

    Without given objects an image has one: of `category`, or of the references' only category, or of the one that its
    folder is called by. DatasetError (CategoryError for `category`) if none of that names a known one.
    """
    if isinstance(images, Labels):
        return list(targets_of(images, references))
    if category is not None:
        try:
            find_category(references, category)
        except DatasetError as error:
            raise CategoryError(str(error)) from None
    if isinstance(images, str | Path):
        named = list_pictures(Path(images))
    else:
        named = [(str(one) if isinstance(one, str | Path) else f"image {n}", one) for n, one in enumerate(images)]
    known = {references.categories[thing.category_id].name: thing.category_id for thing in references.objects}
    targets = []
    for number, (name, source) in enumerate(named, start=1):
        own = category or (next(iter(known)) if len(known) == 1 else Path(name).parent.name)
        if own not in known:
            raise DatasetError(
                f"{name}: category unknown: its folder is none of the references' {', '.join(known)}; name one for all "
                "images, or give their objects"
            )
        targets.append(Target(number, name, source, [LabelledObject(number, number, known[own])]))
    return targets


def list_pictures(folder: Path) -> list[tuple[str, Path]]:
    """(path from the folder, path) of the pictures in a folder, at any depth, sorted. MissingDataError if none is."""
    if not folder.is_dir():
        raise MissingDataError(f"{folder}: no such folder")
    found = [(str(p.relative_to(folder)), p) for p in sorted(folder.rglob("*")) if p.suffix.lower() in SUFFIXES]
    if not found:
        raise MissingDataError(f"{folder}: no picture there")
    return found


def targets_of(labels: Labels, references: Labels) -> Iterator[Target]:
    """The images of labels with their objects, whose categories are those of the same names in the references."""
    names: set[str] = set()
    objects: dict[int, list[LabelledObject]] = defaultdict(list)
    for thing in labels.objects:
        category = find_category(references, labels.categories[thing.category_id].name)
        objects[thing.image_id].append(reorder(thing, labels.categories[thing.category_id], category))
    for image in labels.images.values():
        if image.file_name in names:
            raise DatasetError(f"{labels.where}: {image.file_name} is the file of two images")
        names.add(image.file_name)
        yield Target(image.id, image.file_name, image.path, objects[image.id], image.size)


def find_category(references: Labels, name: str) -> Category:
    """The category of that name; DatasetError if no reference shows it."""
    category = references.category(name)
    if all(thing.category_id != category.id for thing in references.objects):
        raise DatasetError(f"category {name!r} has no reference in {references.where}")
    return category


def reorder(thing: LabelledObject, own: Category, category: Category) -> LabelledObject:
    """The object with its points in the order of a category of the same name."""
    points = thing.points
    if points is not None:
        points = np.zeros((len(category.keypoints), 3))
        for name, point in zip(own.keypoints, thing.points, strict=True):
            if name in category.keypoints:
                points[category.keypoints.index(name)] = point
    return replace(thing, category_id=category.id, points=points)


def choose_references(labels: Labels) -> Labels:
    """Labels that can be references: all but those that a transfer made and nobody has accepted.

    DatasetError for an image or object without points, or if nothing is left; MissingDataError for a missing picture.
    """
    with_objects = {thing.image_id for thing in labels.objects}
    for image in labels.images.values():
        if image.id not in with_objects:
            raise DatasetError(f"{labels.where}: the reference {image.file_name} has no points; label it or remove it")
    chosen = [o for o in labels.objects if "found" not in o.more or o.more.get("review") == "accepted"]
    for thing in chosen:
        image = labels.images[thing.image_id]
        if not len(thing.labelled_points()):
            name = f"{image.file_name} (annotation {thing.id})"
            raise DatasetError(f"{labels.where}: the reference {name} has no points; label it or remove it")
        if not Path(image.path).is_file():
            raise MissingDataError(f"{image.path}: no such image, but {labels.where} lists it")
    if not chosen:
        raise DatasetError(f"{labels.where}: no reference there; what a transfer labelled is one once it is accepted")
    return labels.select(chosen)


# ---- geometry and statistics --------------------------------------------------------------------------------------


def cut_out(picture: Picture, box: np.ndarray | None, mask: np.ndarray | None, margin: float) -> Cut:
    """The part of a picture in a box (x1, y1, x2, y2) px, and `margin` times its longer side around it."""
    height, width = picture.size
    if box is None:
        return Cut(picture, np.zeros(2), mask)
    room = margin * max(box[2] - box[0], box[3] - box[1])
    x1, y1 = np.floor(box[:2] - room).astype(int)
    x2, y2 = np.ceil(box[2:] + room).astype(int)
    (x1, x2), (y1, y2) = _fit(x1, x2, width), _fit(y1, y2, height)
    x, y = picture.image.width / width, picture.image.height / height  # below 1 if the picture was reduced
    size = max(1, round((x2 - x1) * x)), max(1, round((y2 - y1) * y))
    edges = x1 * x, y1 * y, min(x2 * x, picture.image.width), min(y2 * y, picture.image.height)
    image = picture.image.resize(size, Image.Resampling.BILINEAR, box=edges)
    part = None if mask is None else mask[y1:y2, x1:x2]
    return Cut(Picture(image, (y2 - y1, x2 - x1), picture.name), np.array([x1, y1], np.float64), part)


def _fit(low: int, high: int, length: int) -> tuple[int, int]:
    """The part of [low, high) in [0, length), of MIN_SIDE at least."""
    low, high = int(np.clip(low, 0, length)), int(np.clip(high, 0, length))
    low = max(0, min(low, length - MIN_SIDE, (low + high - MIN_SIDE) // 2 if high - low < MIN_SIDE else low))
    return low, max(high, low + MIN_SIDE)


def vote_robustly(found: np.ndarray, radius: float) -> np.ndarray:
    """(3,) x, y, confidence of predictions (n, 3) of one point: the centre of those that support each other most.

    Each supports the others by its confidence times exp(-(d / radius)^2); around the best supported one the mean of
    those within `radius` is taken, weighted by confidence. Its confidence is that support, shared among all.
    """
    xy, weight = found[:, :2], found[:, 2] + 1e-9
    squares = ((xy[:, None] - xy[None]) ** 2).sum(axis=-1) / max(radius, 1e-9) ** 2
    support = (np.exp(-squares) * weight).sum(axis=1)
    best = int(support.argmax())
    near = squares[best] <= 1
    return np.array([*np.average(xy[near], axis=0, weights=weight[near]), support[best] / len(found)])


def choose_threshold(confidence: np.ndarray, right: np.ndarray) -> float:
    """The confidence from which on points count as right that gives the best balanced accuracy, the lowest of equals.

    confidence, right: (n,). 0 if all are right, or none is.
    """
    if right.all() or not right.any():
        return 0.0
    levels, good, bad = np.unique(confidence), np.sort(confidence[right]), np.sort(confidence[~right])
    kept = len(good) - np.searchsorted(good, levels)  # right ones at or above each
    dropped = np.searchsorted(bad, levels)  # wrong ones below
    balanced = kept * len(bad) + dropped * len(good)  # whole numbers: equals are equal
    return float(levels[balanced.argmax()])


def measure(thing: LabelledObject) -> float:
    """The length that PCK's alpha multiplies: the longer side of the box, or of the one around the labelled points."""
    box = thing.find_extent()
    return 0.0 if box is None else float((box[2:] - box[:2]).max())


def label(thing: LabelledObject, found: np.ndarray, visible: float) -> LabelledObject:
    """The object with the keypoints found (K, 3): x, y, confidence. All of them are kept beside COCO's, as "found"."""
    known = found[:, 2] > 0
    shown = known & (found[:, 2] >= visible)
    points = np.where(shown[:, None], np.column_stack([found[:, :2], np.full(len(found), 2)]), 0.0)
    more = {
        "score": round(float(found[known, 2].mean()), 4) if known.any() else 0.0,
        "found": [round(float(v), 4 if i % 3 == 2 else 2) for i, v in enumerate(found.ravel())],
    }
    return replace(thing, points=points, more=more)


def _read(target: Target) -> Picture | ImageError:
    try:
        return read_sized(target.image, target.size)
    except ImageError as error:
        return error


def read_sized(source: ImageSource, size: tuple[int, int] | None) -> Picture:
    """The picture; ImageError if it is not of the size that its labels were made for."""
    picture = read_image(source)
    if size not in (None, picture.size):
        (h, w), (height, width) = picture.size, size
        raise ImageError(f"{picture.name} is {w} x {h} px, but its labels are of {width} x {height}; label it again")
    return picture
