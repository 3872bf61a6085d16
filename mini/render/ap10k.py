"""Writer of AP-10K's layout: two families of animals in COCO's format, with masks and azimuth ids besides.

Ids grow over the images of a species: training, validation, test. So the usual rule (the last 30 of a species are
its test images, the 20 before them validation) gives the splits of the files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dataset.ap10k_split import build_pairs
from mini.render.categories import FAMILIES, SPECIES, keypoint_tables
from mini.render.files import save, write_json
from mini.render.render import Scene, instance_seed, random_size, render_scene
from utils.progress import progress

IMAGES = {"train": 40, "val": 20, "test": 30}  # per species
SPLITS = {"train": "trn", "val": "val", "test": "test"}
SKELETON = (  # pairs of keypoints, counted from 1
    *((1, 2), (1, 3), (2, 3), (3, 4), (4, 5), (4, 6), (6, 7), (7, 8), (4, 9), (9, 10), (10, 11)),
    *((5, 12), (12, 13), (13, 14), (5, 15), (15, 16), (16, 17)),
)
_FIRST_INDEX = 300_000


def write_ap10k(
    root: str | Path, images: Mapping[str, int] = IMAGES, species: Sequence[str] = tuple(SPECIES)
) -> dict[str, int]:
    """Write `root`/ap-10k with `images` per species and split; returns the numbers written."""
    base = Path(root) / "ap-10k"
    records: dict[str, list[tuple[dict, dict]]] = {split: [] for split in images}
    scenes = progress(_scenes(images, species), "rendering", len(species) * sum(images.values()), unit=" images")
    for number, (category_id, split, scene) in enumerate(scenes, start=1):
        records[split].append(_write_image(base, number, category_id, scene))
    categories = [_category_record(i, name) for i, name in enumerate(species, start=1)]
    for split, rows in records.items():
        content = {
            "info": {"description": f"mini world in AP-10K's layout, {split}"},
            "images": [image for image, _ in rows],
            "annotations": [annotation for _, annotation in rows],
            "categories": categories,
        }
        write_json(base / "annotations" / f"ap10k-{split}-split1.json", content)
    write_json(base / "keypoints.json", keypoint_tables(SPECIES[name] for name in species))
    build_pairs(base)
    return {"images": sum(map(len, records.values())), **{split: len(rows) for split, rows in records.items()}}


def _scenes(images: Mapping[str, int], species: Sequence[str]) -> Iterator[tuple[int, str, Scene]]:
    """(category id, split, scene) of every image."""
    for category_id, name in enumerate(species, start=1):
        for split, count in images.items():
            for index in range(_FIRST_INDEX, _FIRST_INDEX + count):
                seed = instance_seed(SPLITS[split], name, index)
                yield category_id, split, render_scene(seed, (name,), random_size(seed))


def _write_image(base: Path, number: int, category_id: int, scene: Scene) -> tuple[dict, dict]:
    """Write an image and its mask; returns the records of the image and of its animal."""
    thing, (height, width) = scene.objects[0], scene.part.shape
    file_name = f"{number:012d}.jpg"
    save(Image.fromarray(scene.image), base / "data" / file_name, quality=95)
    mask = (scene.instance > 0).astype(np.uint8)
    folder = base / "Segmentation" / FAMILIES[SPECIES[thing.category].kin] / thing.category
    save(Image.fromarray(255 * mask), folder / f"{number:012d}.png")
    x1, y1, x2, y2 = thing.bbox
    points = [[0, 0, 0] if point is None else [*map(round, point), 2] for point in thing.kps.values()]
    annotation = {
        "id": number,
        "image_id": number,
        "category_id": category_id,
        "bbox": [x1, y1, x2 - x1 + 1, y2 - y1 + 1],
        "area": int(mask.sum()),
        "iscrowd": 0,
        "num_keypoints": sum(visible > 0 for _, _, visible in points),
        "keypoints": [value for point in points for value in point],
        "azimuth_id": thing.azimuth_id,
    }
    return {"id": number, "file_name": file_name, "width": width, "height": height}, annotation


def _category_record(category_id: int, name: str) -> dict:
    return {
        "id": category_id,
        "name": name,
        "supercategory": FAMILIES[SPECIES[name].kin],
        "keypoints": [keypoint.replace(" ", "_") for keypoint in SPECIES[name].keypoints],
        "skeleton": [list(bone) for bone in SKELETON],
    }
