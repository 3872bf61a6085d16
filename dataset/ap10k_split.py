"""From AP-10K as it is released to pairs for correspondence: GeoAware-SC's construction, made deterministic.

There the order of a folder's listing decides which images are for training and testing; here images are sorted, so that
everybody gets the same lists, which are not theirs. Theirs, or anybody's, are used if they are put into Layout/.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from dataset.ap10k import IMAGES, KEYPOINTS, LISTS, POINTS
from dataset.error import DatasetError, MissingDataError
from dataset.parse import read_record, read_text
from utils.progress import progress
from utils.store import write_text

SOURCES = tuple(f"ap10k-{part}-split1.json" for part in ("train", "test", "val"))  # in the order in which they count
CROWD = "ap-10k_is_crowd.txt"  # ids of images with several animals, a line each; curated by GeoAware-SC's authors
HELD_OUT = {"test": 30, "val": 20}  # images per species, from the last one back
COMMON = 3  # keypoints that an image must show, and a pair must share
PER_IMAGE = 50  # training pairs of a species, at most, for each of its images
ACROSS_SPECIES = {"val": 400, "test": 900}  # pairs of each family, at most
ACROSS_FAMILIES = {"val": 20, "test": 30}  # pairs of each pair of families, at most
SEED = 42


@dataclass(frozen=True, eq=False)
class Kind:
    """The images of one species that can be used, in order of their ids."""

    family: str
    name: str
    images: list[str]  # twelve digits each
    visible: np.ndarray  # (n, 17) bool

    def part(self, split: str) -> Kind:
        """The last 30 are for testing, the 20 before them for validation, the rest for training."""
        ends = np.cumsum([0, *HELD_OUT.values()])
        rows = np.arange(len(self.images))[::-1]
        place = list(HELD_OUT).index(split) if split in HELD_OUT else None
        chosen = np.sort(rows[ends[-1] :] if place is None else rows[ends[place] : ends[place + 1]])
        return Kind(self.family, self.name, [self.images[i] for i in chosen], self.visible[chosen])


def build_pairs(folder: Path) -> dict[str, int]:
    """Writes ImageAnnotation/, JPEGImages/ and Layout/ into a folder with AP-10K's annotations/ and data/.

    Lists that are in Layout/ already stay. Returns the number of pairs of each list written. Raises MissingDataError or
    DatasetError, which name the file.
    """
    crowd = read_crowd(folder / CROWD)
    kinds = sort_images(folder, crowd)
    made = {"trn": list_within(kinds, "trn")}
    for split in HELD_OUT:
        made[split] = list_within(kinds, split)
        made[f"{split}_cross_species"] = list_across_species(kinds, split)
        made[f"{split}_cross_family"] = list_across_families(kinds, split)
    counts = {}
    for split, lines in made.items():
        path, lines = folder / LISTS / f"{split}.txt", list(lines)
        if not path.exists():
            write_text(path, "".join(f"{line}\n" for line in lines))
            counts[split] = len(lines)
    return counts


def read_crowd(path: Path) -> frozenset[int]:
    """Ids of images that are not used; none without the file."""
    if not path.is_file():
        return frozenset()
    words = read_text(path).split()
    if wrong := [word for word in words if not word.removesuffix(".json").isdecimal()]:
        raise DatasetError(f"{path}: {wrong[0]!r} is no id of an image; a line is one number")
    return frozenset(int(word.removesuffix(".json")) for word in words)


def sort_images(folder: Path, crowd: frozenset[int]) -> list[Kind]:
    """Writes each image's annotation and lays its picture into family/species; the species with their usable images."""
    usable: dict[tuple[str, str], list[tuple[str, np.ndarray]]] = {}
    records = read_annotations(folder / "annotations")
    for record, where in progress(records, "AP-10K, images"):
        family, species, name = record["supercategory"], record["name"], f"{record['id']:012d}"
        picture = folder / "data" / record["file_name"]
        if not picture.is_file():
            raise MissingDataError(f"{picture}: no such file ({where})")
        place_picture(picture, folder / "JPEGImages" / family / species / f"{name}.jpg")
        record |= {"is_crowd": 1} if record["id"] in crowd else {}
        write_text(folder / IMAGES / family / species / f"{name}.json", json.dumps(record))
        visible = np.reshape(record["keypoints"], (POINTS, 3))[:, 2] > 0
        entries = usable.setdefault((family, species), [])
        if record["id"] not in crowd and record["num_keypoints"] >= COMMON:
            entries.append((name, visible))
    kinds = []
    for (family, species), entries in sorted(usable.items()):
        entries.sort(key=lambda entry: entry[0])
        kind = Kind(
            family, species, [name for name, _ in entries], np.array([seen for _, seen in entries]).reshape(-1, POINTS)
        )
        for split, word in (("trn", "train"), ("val", "val"), ("test", "test")):
            text = "".join(f"{name}.json\n" for name in kind.part(split).images)
            write_text(folder / IMAGES / family / species / f"{word}_filtered.txt", text)
        kinds.append(kind)
    return kinds


def read_annotations(folder: Path) -> Iterator[tuple[dict, str]]:
    """(record, file) of every image: its first annotation, with the fields of the image and of its category."""
    known: set[int] = set()
    for name in SOURCES:
        whole = read_record(folder / name)
        images, categories = (whole.by_id(part) for part in ("images", "categories"))
        for annotation in whole.records("annotations"):
            image_id = annotation.whole("image_id", 0, 10**12 - 1)
            if image_id in known:
                continue
            known.add(image_id)
            image, category = images.get(image_id), categories.get(annotation.whole("category_id", 0, 10**9))
            if image is None or category is None:
                what = "category_id" if image else "image_id"
                raise annotation.wrong(what, "one that the file describes")
            annotation.array("keypoints", (3 * POINTS,), KEYPOINTS)
            annotation.whole("num_keypoints", 0, POINTS)
            image.file_name("file_name"), category.file_name("supercategory"), category.file_name("name")
            kind = {key: category.get(key) for key in ("supercategory", "name")}
            yield {**annotation.values, **kind, **image.values}, str(folder / name)


def place_picture(source: Path, target: Path) -> None:
    """The same file under another name, without a copy where the disk can do that."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def list_within(kinds: Iterable[Kind], split: str) -> Iterator[str]:
    """Pairs of one species: all in validation and test, at most PER_IMAGE for each image in training."""
    rng = np.random.default_rng(SEED)
    for kind in (kind.part(split) for kind in kinds):
        most = PER_IMAGE * len(kind.images) if split == "trn" else None
        yield from draw([(kind, kind)], most, rng, kind.name)


def list_across_species(kinds: Sequence[Kind], split: str) -> Iterator[str]:
    """Pairs of different species of one family, all of them pooled before they are drawn."""
    rng = np.random.default_rng(SEED)
    for family, members in group_by_family(kinds, split).items():
        yield from draw(list(combinations(members, 2)), ACROSS_SPECIES[split], rng, family)


def list_across_families(kinds: Sequence[Kind], split: str) -> Iterator[str]:
    """Pairs of animals of two families."""
    rng = np.random.default_rng(SEED)
    for first, second in combinations(group_by_family(kinds, split).values(), 2):
        yield from draw([(a, b) for a in first for b in second], ACROSS_FAMILIES[split], rng, "all")


def group_by_family(kinds: Iterable[Kind], split: str) -> dict[str, list[Kind]]:
    families: dict[str, list[Kind]] = {}
    for kind in kinds:
        families.setdefault(kind.family, []).append(kind.part(split))
    return families


def draw(sides: Sequence[tuple[Kind, Kind]], most: int | None, rng: np.random.Generator, suffix: str) -> Iterator[str]:
    """Lines of at most so many of the pairs of images, one of each side, that share enough keypoints; in their order.

    A species with itself gives each pair once, in the order of its images.
    """
    found = []
    for a, b in sides:
        shared = a.visible.astype(int) @ b.visible.astype(int).T >= COMMON
        places = np.argwhere(np.triu(shared, 1) if a is b else shared)
        found += [f"{a.images[i]}-{b.images[j]}:{suffix}" for i, j in places]
    if most is not None and len(found) > most:
        found = [found[i] for i in np.sort(rng.choice(len(found), most, replace=False))]
    yield from found
