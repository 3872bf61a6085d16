"""Keypoints of labelled images carried to others: `Transfer(matcher, references)(images)`."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from config import change_config
from dataset import DatasetError, MissingDataError
from dataset.annotation import Category, LabelledImage, LabelledObject, Labels, read_labels
from dataset.record import mirror_kps, threshold
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
    name: str
    image: ImageSource
    objects: Sequence[LabelledObject]
    size: tuple[int, int] | None = None  # (H, W) that the boxes and masks refer to


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
    """A labelled object as it is, or mirrored, with its features."""

    cut: Cut
    features: ImageFeatures
    keypoints: np.ndarray  # (n,) indices of its labelled keypoints in its category
    points: np.ndarray  # (n, 2) float32, px of the cut


@dataclass(frozen=True, eq=False)
class Reference:
    """A labelled object: one or two views of it."""

    id: int
    image_id: int
    category: Category
    views: Sequence[View]


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
        self.labels = references if isinstance(references, Labels) else read_labels(references)
        require_points(self.labels)
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
        size = self.matcher.config.EVAL.BATCH_SIZE
        targets = iter(targets)
        with ThreadPoolExecutor() as pool:
            before: list[tuple[Target, Future]] = []
            while True:
                batch = [(target, pool.submit(_read, target)) for target in itertools.islice(targets, size)]
                yield from self._match_batch([(target, future.result()) for target, future in before])
                if not batch:
                    return
                before = batch

    def find_threshold(self, labelled: Labels | None = None) -> tuple[float, int]:
        """The confidence from which a point counts as visible, and the number of points that it was chosen on.

        TRANSFER.VISIBLE, or the one that best tells right from wrong on `labelled` images, by default on (some of) the
        references, each without the others of its image; 0 if there is nothing to choose by. Right: labelled in
        the target, and found within EVAL.PICTURE_ALPHA of its box.
        """
        if self.settings.VISIBLE >= 0:
            return self.settings.VISIBLE, 0
        if labelled is None:
            judged = list(self._match_references())
        else:
            targets = list(targets_of(labelled, self.labels))
            records = zip(targets, self.match(targets), strict=True)
            judged = [pair for t, record in records for pair in zip(t.objects, record.get("objects", []), strict=False)]
        confidence, right = [], []
        for thing, votes in judged:
            if thing.points is None:
                continue
            found = self.combine(votes, len(thing.points))
            known = found[:, 2] > 0
            near = np.linalg.norm(found[:, :2] - thing.points[:, :2], axis=1) <= self.alpha * measure(thing)
            confidence.append(found[known, 2])
            right.append((near & (thing.points[:, 2] > 0))[known])
        if not confidence:
            return 0.0, 0
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

    def _encode_references(self) -> dict[str, list[Reference]]:
        """By category."""
        labels, cuts = self.labels, []
        pictures = _read_all([labels.images[thing.image_id].path for thing in labels.objects])
        for thing, picture in zip(labels.objects, pictures, strict=True):
            _require_size(picture, labels.images[thing.image_id])
            cut, category = self._cut(picture, thing), labels.categories[thing.category_id]
            flip = category.find_flip() if self.settings.MIRROR else None
            cuts.append((thing, category, [(cut, None)] + ([(cut.mirror(), flip)] if flip else [])))
        flat = [(cut.picture, category.name) for _, category, own in cuts for cut, _ in own]
        features = iter(self.matcher.encode_many(*map(list, zip(*flat, strict=True))))
        found: dict[str, list[Reference]] = defaultdict(list)
        for thing, category, own in cuts:
            views = [_make_view(thing, cut, flip, next(features)) for cut, flip in own]
            found[category.name].append(Reference(thing.id, thing.image_id, category, views))
        return dict(found)

    def _cut(self, picture: Picture, thing: LabelledObject) -> Cut:
        settings, box = self.settings, thing.find_box()
        mask = thing.find_mask(picture.size)
        if mask is not None and box is None and mask.any():
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        return cut_out(picture, box if settings.CROP else None, mask, settings.MARGIN)

    def _match_batch(self, batch: Sequence[tuple[Target, Picture | ImageError]]) -> Iterator[Record]:
        cuts = [
            [self._cut(picture, thing) for thing in target.objects] if isinstance(picture, Picture) else []
            for target, picture in batch
        ]
        names = [
            [self.labels.categories[thing.category_id].name for thing in target.objects[: len(own)]]
            for (target, _), own in zip(batch, cuts, strict=True)
        ]
        flat, categories = sum(cuts, []), sum(names, [])
        votes = iter(
            self._match_cuts(flat, self.matcher.encode_many([c.picture for c in flat], categories), categories)
        )
        for (target, picture), own in zip(batch, cuts, strict=True):
            if isinstance(picture, Picture):
                yield {"name": target.name, "size": list(picture.size), "objects": [next(votes) for _ in own]}
            else:
                yield {"name": target.name, "error": str(picture)}

    def _match_cuts(
        self, cuts: Sequence[Cut], features: Sequence[ImageFeatures], categories: Sequence[str]
    ) -> list[Record]:
        """What the references of its category say of each cut."""
        found = [{"side": max(cut.picture.size), "votes": []} for cut in cuts]
        for name in dict.fromkeys(categories):
            places = [i for i, category in enumerate(categories) if category == name]
            for reference in self.references[name]:
                votes = self._ask(reference, [cuts[i] for i in places], [features[i] for i in places])
                for i, vote in zip(places, votes, strict=True):
                    found[i]["votes"].append(vote)
        return found

    def _match_references(self) -> Iterator[tuple[LabelledObject, Record]]:
        """(reference, what the other images' say of it) of up to MOST_JUDGED of each category, evenly spread."""
        things = {thing.id: thing for thing in self.labels.objects}
        for members in self.references.values():
            chosen = np.linspace(0, len(members) - 1, min(len(members), MOST_JUDGED)).round().astype(int)
            for one in (members[place] for place in chosen):
                view = one.views[0]
                others = [other for other in members if other.image_id != one.image_id]
                votes = [self._ask(other, [view.cut], [view.features])[0] for other in others]
                yield things[one.id], {"side": max(view.cut.picture.size), "votes": votes}

    def _ask(self, reference: Reference, cuts: Sequence[Cut], features: Sequence[ImageFeatures]) -> list[Record]:
        """A reference's vote for each cut, by the view of it that matches the cut better."""
        best: list[Record] = [{} for _ in cuts]
        score = np.full(len(cuts), -1.0)
        for view in reference.views:
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
                    best[i] = {"reference": reference.id, "mirrored": int(view.cut.mirrored), "points": points}
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
            _require_reference(references, references.category(category))
        except DatasetError as error:
            raise CategoryError(str(error)) from None
    if isinstance(images, str | Path):
        named = list_pictures(Path(images))
    else:
        named = [
            (str(source) if isinstance(source, str | Path) else f"image {n}", source) for n, source in enumerate(images)
        ]
    known = {entry.name: entry.id for entry in references.categories.values() if _is_used(references, entry.id)}
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
        category = references.category(labels.categories[thing.category_id].name)
        _require_reference(references, category)
        objects[thing.image_id].append(reorder(thing, labels.categories[thing.category_id], category))
    for image in labels.images.values():
        if image.file_name in names:
            raise DatasetError(f"{labels.where}: {image.file_name} is the file of two images")
        names.add(image.file_name)
        yield Target(image.id, image.file_name, image.path, objects[image.id], image.size)


def _require_reference(references: Labels, category: Category) -> None:
    if not _is_used(references, category.id):
        raise DatasetError(f"category {category.name!r} has no reference in {references.where}")


def _is_used(references: Labels, category_id: int) -> bool:
    return any(thing.category_id == category_id for thing in references.objects)


def reorder(thing: LabelledObject, own: Category, category: Category) -> LabelledObject:
    """The object with its points in the order of a category of the same name."""
    points = thing.points
    if points is not None:
        points = np.zeros((len(category.keypoints), 3))
        for name, point in zip(own.keypoints, thing.points, strict=True):
            if name in category.keypoints:
                points[category.keypoints.index(name)] = point
    return replace(thing, category_id=category.id, points=points)


def require_points(labels: Labels) -> None:
    """Refuses references of which one has no points, or whose picture is missing."""
    with_objects = {thing.image_id for thing in labels.objects}
    for image in labels.images.values():
        if image.id not in with_objects:
            raise DatasetError(f"{labels.where}: the reference {image.file_name} has no points; label it or remove it")
    for thing in labels.objects:
        image = labels.images[thing.image_id]
        if thing.points is None or not (thing.points[:, 2] > 0).any():
            raise DatasetError(
                f"{labels.where}: the reference {image.file_name} (annotation {thing.id}) has no points; label it or "
                "remove it"
            )
        if not Path(image.path).is_file():
            raise MissingDataError(f"{image.path}: no such image, but {labels.where} lists it")
    if not labels.objects:
        raise DatasetError(f"{labels.where}: no reference there")


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
    scale = np.array([picture.image.width / width, picture.image.height / height])
    if (scale == 1).all():
        image = picture.image.crop((x1, y1, x2, y2))
    else:  # the picture was reduced
        edges = np.array([x1, y1, x2, y2]) * np.tile(scale, 2)
        size = np.maximum(np.round(edges[2:] - edges[:2]).astype(int), 1)
        image = picture.image.resize(tuple(size.tolist()), Image.Resampling.BILINEAR, box=tuple(edges.tolist()))
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
    order = np.argsort(confidence, kind="stable")
    confidence, right = confidence[order], right[order]
    kept = right.sum() - np.cumsum(right) + right  # right ones at or above each
    dropped = np.cumsum(~right) - ~right  # wrong ones below
    balanced = kept * (~right).sum() + dropped * right.sum()  # whole numbers: equals are equal
    first = np.concatenate([[True], np.diff(confidence) > 0])  # equal confidences stand or fall together
    return float(confidence[np.where(first, balanced, -1).argmax()])


def measure(thing: LabelledObject) -> float:
    """The length that PCK's alpha multiplies: the longer side of the box, or of the one around the labelled points."""
    box, points = thing.find_box(), thing.points[thing.points[:, 2] > 0, :2]
    if box is None and not len(points):
        return 0.0
    return threshold("kps" if box is None else "bbox", box, points, (0, 0))


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


def _make_view(thing: LabelledObject, cut: Cut, flip: Sequence[int] | None, features: ImageFeatures) -> View:
    keypoints = np.flatnonzero(thing.points[:, 2] > 0)
    points = cut.to_cut(thing.points[keypoints, :2])
    names = keypoints if flip is None else np.array(flip)[keypoints]
    last = np.array(cut.picture.size[::-1]) - 1
    return View(cut, features, names, points.clip(0, last).astype(np.float32))


def _require_size(picture: Picture, image: LabelledImage) -> None:
    if picture.size != tuple(image.size):
        (h, w), (height, width) = picture.size, image.size
        raise DatasetError(f"{image.path} is {w} x {h} px, but its labels are of {width} x {height}; label it again")


def _read(target: Target) -> Picture | ImageError:
    try:
        picture = read_image(target.image)
    except ImageError as error:
        return error
    if target.size not in (None, picture.size):
        (h, w), (height, width) = picture.size, target.size
        return ImageError(f"{picture.name} is {w} x {h} px, but its objects are given for {width} x {height}")
    return picture


def _read_all(sources: Sequence[ImageSource]) -> Iterator[Picture]:
    """Pictures in order, each read when it is asked for."""
    return map(read_image, sources)
