"""Writers of the mini world in the layouts of SPair-71k, PF-Pascal and PF-Willow, and the table of all writers.

Keypoints and boxes are pixels (x, y) of the written image, counted from 0.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dataset.pfpascal import PASCAL_CLASSES
from mini.render.ap10k import write_ap10k
from mini.render.categories import CATEGORIES, keypoint_tables
from mini.render.comvg import write_comvg
from mini.render.files import save, write_csv, write_json, write_lines
from mini.render.render import GENERATOR_VERSION, Scene, SceneObject, instance_seed, random_size, render_scene
from utils.progress import progress

SPAIR_CLASSES = tuple(c for c in PASCAL_CLASSES if c not in ("diningtable", "sofa"))
SPAIR_IMAGES = {"trn": 60, "val": 20, "test": 30}  # per category
SPAIR_PAIRS = {"trn": 300, "val": 50, "test": 120}  # per category
SPAIR_FULL_PAIRS = {"trn": 53340, "val": 5384, "test": 12234}  # of the real benchmark, all categories
RANDOM_POINTS = 20  # of each image of the index of the real size
PFPASCAL_IMAGES = {"trn": 20, "val": 10, "test": 10}  # per category
PFPASCAL_PAIRS = {"trn": 30, "val": 10, "test": 10}  # per category; trn rows appear a second time mirrored
PFWILLOW_CLASSES = {  # folder: category, azimuth range in degrees
    "aeroplane(G)": ("aeroplane", (35.0, 80.0)),
    "bicycle(S)": ("bicycle", (60.0, 115.0)),
    "car(G)": ("car", (28.0, 60.0)),
    "horse(S)": ("horse", (45.0, 80.0)),
    "person(M)": ("person", (335.0, 385.0)),
}
PFWILLOW_IMAGES, PFWILLOW_PAIRS = 12, 20  # per class
WILLOW_POINTS = 10

LAYOUT_VERSION = 3  # of the files beside the images
_NEWER = {"comvg": 1}  # of one benchmark's files beyond it
_MIN_COMMON = 4  # keypoints a pair must share
_FIRST_INDEX = {"spair": 0, "pfpascal": 100_000, "pfwillow": 200_000}  # of the instances of each benchmark
_COORDINATES = ("XA", "YA", "XB", "YB")


@dataclass(frozen=True)
class Picture:
    """One rendered instance under its file name (without extension)."""

    name: str
    scene: Scene

    @property
    def object(self) -> SceneObject:
        return self.scene.objects[0]

    @property
    def record(self) -> dict:
        """SPair-71k's."""
        return _image_record(self.name, self.scene.part.shape, self.object)


Pair = tuple[Picture, Picture, tuple[str, ...]]  # source, target, ids of the common keypoints


def write_spair(
    root: str | Path,
    images: Mapping[str, int] = SPAIR_IMAGES,
    pairs: Mapping[str, int] = SPAIR_PAIRS,
    categories: Sequence[str] = tuple(CATEGORIES),
) -> dict[str, int]:
    """Write `root`/SPair-71k with `images` and `pairs` per category and split; returns the numbers written.

    Raises ValueError when a category has too few pairs with four common keypoints.
    """
    base = Path(root) / "SPair-71k"
    counts = {"images": 0}
    for split in images:
        rows = []
        for category in progress(categories, f"rendering {split}", unit=" categories"):
            pictures = _pictures("spair", split, category, images[split])
            for picture in pictures:
                _write_spair_image(base, picture)
            counts["images"] += len(pictures)
            rows += _sample_pairs(pictures, pairs[split], f"{split}/{category}")
        lines = [_write_spair_pair(base, split, i, pair) for i, pair in enumerate(rows, 1)]
        write_lines(base / "Layout" / "large" / f"{split}.txt", lines)
        counts[split] = len(lines)
    write_json(base / "keypoints.json", keypoint_tables(CATEGORIES[name] for name in categories))
    return counts


def write_pfpascal(
    root: str | Path,
    images: Mapping[str, int] = PFPASCAL_IMAGES,
    pairs: Mapping[str, int] = PFPASCAL_PAIRS,
    categories: Sequence[str] = tuple(CATEGORIES),
) -> dict[str, int]:
    """Write `root`/pf-pascal; the training file lists every pair twice, the second time with flip = 1.

    Raises ValueError when a category has too few pairs with four common keypoints seen from similar sides.
    """
    base = Path(root) / "pf-pascal"
    counts = {"images": 0}
    for split in images:
        rows = []
        for category in progress(categories, f"rendering {split}", unit=" categories"):
            pictures = _pictures("pfpascal", split, category, images[split])
            for picture in pictures:
                _write_pfpascal_image(base, picture)
            counts["images"] += len(pictures)
            chosen = _sample_pairs(pictures, pairs[split], f"{split}/{category}", same_side=True)
            rows += [row for pair in chosen for row in _pfpascal_rows(pair, flips=split == "trn")]
        extra = ("flip",) if split == "trn" else _COORDINATES
        write_csv(base / f"{split}_pairs.csv", ("source_image", "target_image", "class", *extra), rows)
        counts[split] = len(rows)
    return counts


def write_pfwillow(
    root: str | Path,
    images: int = PFWILLOW_IMAGES,
    pairs: int = PFWILLOW_PAIRS,
    classes: Sequence[str] = tuple(PFWILLOW_CLASSES),
) -> dict[str, int]:
    """Write `root`/pf-willow: `pairs` test pairs with exactly ten points for each of `classes`.

    Raises ValueError when a class has too few pairs with ten common keypoints.
    """
    base = Path(root) / "pf-willow"
    rows, counts = [], {"images": 0}
    for folder in classes:
        pictures = _willow_pictures(folder, images)
        for picture in pictures:
            save(Image.fromarray(picture.scene.image), base / "PF-dataset" / folder / f"{picture.name}.png")
        counts["images"] += len(pictures)
        chosen = _sample_pairs(pictures, pairs, folder, minimum=WILLOW_POINTS)
        rows += [_pfwillow_row(folder, pair) for pair in chosen]
    columns = [f"{axis}{i}" for axis in _COORDINATES for i in range(1, WILLOW_POINTS + 1)]
    write_csv(base / "test_pairs.csv", ("imageA", "imageB", *columns), rows)
    counts["test"] = len(rows)
    return counts


WRITERS: dict[str, tuple[str, Callable[[str | Path], dict[str, int]]]] = {
    "spair": ("SPair-71k", write_spair),
    "pfpascal": ("pf-pascal", write_pfpascal),
    "pfwillow": ("pf-willow", write_pfwillow),
    "ap10k": ("ap-10k", write_ap10k),
    "comvg": ("comvg", write_comvg),
}


def install(root: str | Path, name: str, **sizes) -> dict[str, int] | None:
    """Write benchmark `name` (a key of WRITERS) under `root` unless it is there; `sizes` go to the writer.

    The folder is written aside and renamed, with the stamp file mini.json in it. Returns the counts, or None
    when a folder with the same stamp exists; one with another stamp is replaced. Raises FileExistsError when
    the folder exists without a stamp, for then it may hold the real benchmark.
    """
    folder, writer = WRITERS[name]
    target, aside = Path(root) / folder, Path(root) / f".{folder}.partial"
    stamp = {
        "generator": GENERATOR_VERSION,
        "layout": LAYOUT_VERSION + _NEWER.get(name, 0),
        "benchmark": name,
        "sizes": json.loads(json.dumps(sizes)),
    }
    if target.exists() and _read_stamp(target) == stamp:
        return None
    shutil.rmtree(aside, ignore_errors=True)
    counts = writer(aside, **sizes)
    (aside / folder / "mini.json").write_text(json.dumps(stamp, indent=1) + "\n")
    if target.exists():
        shutil.rmtree(target)
    os.replace(aside / folder, target)
    aside.rmdir()
    return counts


def _read_stamp(target: Path) -> dict:
    path = target / "mini.json"
    if not path.is_file():
        raise FileExistsError(
            f"{target} exists but {path.name} is missing: it was not written by the mini world. "
            f"Move it away or choose another --root."
        )
    return json.loads(path.read_text())


def write_full_size_spair_index(
    root: str | Path, pairs: Mapping[str, int] = SPAIR_FULL_PAIRS, images: int = 100
) -> dict[str, int]:
    """Write an SPair-71k index of the real size, with random annotations and no images, for speed tests.

    `pairs` counts all 18 categories together; every category has `images` image records per split.
    Returns the number of lines of each split. Raises ValueError when `images` is too small for the pairs.
    """
    base, counts = Path(root) / "SPair-71k", {}
    rng = np.random.default_rng(0)
    for s, split in enumerate(pairs):
        lines, objects = [], {}
        for c, category in enumerate(SPAIR_CLASSES):
            objects[category] = [
                _random_record(rng, category, _image_name(2008 + s, images * c + i)) for i in range(images)
            ]
            for record in objects[category]:
                write_json(base / "ImageAnnotation" / category / f"{record['filename'][:-4]}.json", record)
        folder = base / "PairAnnotation" / split
        folder.mkdir(parents=True, exist_ok=True)
        for number, (category, i, j) in enumerate(_spread(pairs[split], images), 1):
            pair = _pair_of_records(number, objects[category][i], objects[category][j])
            (folder / f"{pair['filename']}.json").write_text(json.dumps(pair))
            lines.append(pair["filename"])
        write_lines(base / "Layout" / "large" / f"{split}.txt", lines)
        counts[split] = len(lines)
    table = {"names": [], "flip": list(range(RANDOM_POINTS)), "groups": []}
    write_json(base / "keypoints.json", dict.fromkeys(SPAIR_CLASSES, table))
    return counts


def _pictures(benchmark: str, split: str, category: str, count: int) -> list[Picture]:
    first = _FIRST_INDEX[benchmark]
    return [_picture(split, category, first + i) for i in range(count)]


def _picture(split: str, category: str, index: int, **options) -> Picture:
    """Instance `index`, in an image of its own random size."""
    seed = instance_seed(split, category, index)
    scene = render_scene(seed, (category,), random_size(seed), **options)
    year = 2008 + ("trn", "val", "test").index(split)
    return Picture(_image_name(year, 1000 * PASCAL_CLASSES.index(category) + index % 1000), scene)


def _image_name(year: int, number: int) -> str:
    return f"{year}_{number:06d}"


def _willow_pictures(folder: str, count: int) -> list[Picture]:
    """The first `count` instances that show ten keypoints."""
    category, azimuth = PFWILLOW_CLASSES[folder]
    found, index = [], _FIRST_INDEX["pfwillow"]
    while len(found) < count:
        picture = _picture("test", category, index, mirror=False, azimuth=azimuth, occlude=0, truncate=0)
        index += 1
        if sum(point is not None for point in picture.object.kps.values()) >= WILLOW_POINTS:
            found.append(picture)
    return found


def _common(src: Picture, trg: Picture) -> tuple[str, ...]:
    return tuple(k for k, point in src.object.kps.items() if point is not None and trg.object.kps[k] is not None)


def _sample_pairs(
    pictures: Sequence[Picture], count: int, where: str, minimum: int = _MIN_COMMON, same_side: bool = False
) -> list[Pair]:
    """`count` different pairs in random order and direction, with at least `minimum` common keypoints."""
    rng = np.random.default_rng(list(where.encode()))
    candidates = [(i, j) for i in range(len(pictures)) for j in range(i)]
    chosen: list[Pair] = []
    for k in rng.permutation(len(candidates)):
        i, j = candidates[k][::-1] if rng.random() < 0.5 else candidates[k]
        src, trg = pictures[i], pictures[j]
        common = _common(src, trg)
        if len(common) >= minimum and not (same_side and _view_difference(src.object, trg.object) > 1):
            chosen.append((src, trg, common))
        if len(chosen) == count:
            return chosen
    raise ValueError(
        f"{where}: {len(chosen)} of the {count} wanted pairs have {minimum} common keypoints among "
        f"{len(pictures)} images; ask for fewer pairs or more images"
    )


def _view_difference(src: SceneObject, trg: SceneObject) -> int:
    """Steps of 45 degrees between the two views."""
    steps = abs(src.azimuth_id - trg.azimuth_id)
    return min(steps, 8 - steps)


def _write_spair_image(base: Path, picture: Picture) -> None:
    category = picture.object.category
    save(
        Image.fromarray(picture.scene.image),
        base / "JPEGImages" / category / f"{picture.name}.jpg",
        quality=95,
    )
    mask = Image.fromarray((picture.scene.instance > 0).astype(np.uint8) * (PASCAL_CLASSES.index(category) + 1))
    mask.putpalette(_palette())
    save(mask, base / "Segmentation" / category / f"{picture.name}.png")
    write_json(base / "ImageAnnotation" / category / f"{picture.name}.json", picture.record)


def _palette() -> list[int]:
    """PASCAL VOC's colours: the bits of the class index, interleaved over the three channels."""
    return [
        sum(((i >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(8))
        for i in range(256)
        for channel in range(3)
    ]


def _image_record(name: str, size: tuple[int, int], thing: SceneObject) -> dict:
    """SPair-71k's record of an image of a size (H, W)."""
    return {
        "filename": f"{name}.jpg",
        "src_database": "mini",
        "image_width": size[1],
        "image_height": size[0],
        "image_depth": 3,
        "category": thing.category,
        "pose": thing.pose,
        "truncated": thing.truncated,
        "occluded": thing.occluded,
        "difficult": 0,
        "bndbox": list(thing.bbox),
        "kps": {k: None if point is None else [round(v) for v in point] for k, point in thing.kps.items()},
        "azimuth_id": thing.azimuth_id,
    }


def _write_spair_pair(base: Path, split: str, number: int, pair: Pair) -> str:
    """Write pair `number` of the split and return its line of the layout file."""
    record = _pair_of_records(number, *(picture.record for picture in pair[:2]))
    write_json(base / "PairAnnotation" / split / f"{record['filename']}.json", record)
    return record["filename"]


def _pair_of_records(number: int, src: dict, trg: dict) -> dict:
    """SPair-71k's pair record of two image records."""
    ids = [k for k, point in src["kps"].items() if point is not None and trg["kps"].get(k) is not None]
    steps = abs(src["azimuth_id"] - trg["azimuth_id"])
    names = [record["filename"].split(".")[0] for record in (src, trg)]
    return {
        "pair_id": number,
        "filename": f"{number:06d}-{names[0]}-{names[1]}:{src['category']}",
        "src_imname": src["filename"],
        "trg_imname": trg["filename"],
        "src_imsize": [src["image_width"], src["image_height"], 3],
        "trg_imsize": [trg["image_width"], trg["image_height"], 3],
        "src_bndbox": src["bndbox"],
        "trg_bndbox": trg["bndbox"],
        "category": src["category"],
        "src_pose": src["pose"],
        "trg_pose": trg["pose"],
        "src_kps": [src["kps"][k] for k in ids],
        "trg_kps": [trg["kps"][k] for k in ids],
        "kps_ids": ids,
        "mirror": 0,
        "viewpoint_variation": min(steps, 8 - steps, 2),
        "scale_variation": _scale_variation(src, trg),
        "truncation": src["truncated"] + 2 * trg["truncated"],
        "occlusion": src["occluded"] + 2 * trg["occluded"],
    }


def _scale_variation(src: dict, trg: dict) -> int:
    """0, 1 or 2: the shares of the images that the boxes take differ < 1.3 times, < 1.7 times or more."""
    shares = [
        max(
            (r["bndbox"][2] - r["bndbox"][0] + 1) / r["image_width"],
            (r["bndbox"][3] - r["bndbox"][1] + 1) / r["image_height"],
        )
        for r in (src, trg)
    ]
    ratio = max(shares) / min(shares)
    return int(ratio >= 1.3) + int(ratio >= 1.7)


def _write_pfpascal_image(base: Path, picture: Picture) -> None:
    from scipy.io import savemat

    thing = picture.object
    data = base / "PF-dataset-PASCAL"
    save(Image.fromarray(picture.scene.image), data / "JPEGImages" / f"{picture.name}.jpg", quality=95)
    path = data / "Annotations" / thing.category / f"{picture.name}.mat"
    path.parent.mkdir(parents=True, exist_ok=True)
    kps = np.array([(np.nan, np.nan) if point is None else point for point in thing.kps.values()], np.float64)
    savemat(path, {"kps": kps, "bbox": np.array([thing.bbox], np.float64)})


def _pfpascal_rows(pair: Pair, flips: bool) -> list[tuple]:
    src, trg, common = pair
    files = [f"PF-dataset-PASCAL/JPEGImages/{picture.name}.jpg" for picture in (src, trg)]
    row = (*files, PASCAL_CLASSES.index(src.object.category) + 1)
    if flips:
        return [(*row, 0), (*row, 1)]
    lists = [
        ";".join(f"{picture.object.kps[k][axis]:.4f}" for k in common) for picture in (src, trg) for axis in (0, 1)
    ]
    return [(*row, *lists)]


def _pfwillow_row(folder: str, pair: Pair) -> list:
    src, trg, common = pair
    files = [f"PF-dataset/{folder}/{picture.name}.png" for picture in (src, trg)]
    chosen = common[:WILLOW_POINTS]
    return [
        *files,
        *(f"{picture.object.kps[k][axis]:.4f}" for picture in (src, trg) for axis in (0, 1) for k in chosen),
    ]


def _random_record(rng: np.random.Generator, category: str, name: str) -> dict:
    """Image record with random numbers; keypoints 0 to 3 are always visible."""
    width, height = (int(v) for v in rng.integers(300, 501, 2))
    points = rng.integers(0, (width, height), (RANDOM_POINTS, 2)).tolist()
    kps = {str(k): point if k < 4 or point[0] % 3 else None for k, point in enumerate(points)}
    box, cut, hidden, view = (20, 20, width - 20, height - 20), points[0][0] % 2, points[0][1] % 2, points[1][0] % 8
    thing = SceneObject(category, "", "left", 45.0 * view, view, "Left", False, cut, hidden, box, kps)
    return _image_record(name, (height, width), thing)


def _spread(count: int, images: int) -> Iterator[tuple[str, int, int]]:
    """`count` different (category, source index, target index), evenly over SPair's categories."""
    share, rest = divmod(count, len(SPAIR_CLASSES))
    if share + (rest > 0) > images * (images - 1):
        raise ValueError(f"{images} images per category give too few pairs for {count} in all; ask for more images")
    for c, category in enumerate(SPAIR_CLASSES):
        for k in range(share + (c < rest)):
            i, step = k % images, 1 + k // images
            yield category, i, (i + step) % images
