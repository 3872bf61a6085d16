"""Small real data sets in the three formats, for tests of the readers and of all that uses them.

root = tiny_spair(tmp_path)      # trn 6, val 2, test 4 pairs; bird, cat; 3 images each
root = tiny_pfpascal(tmp_path)   # trn 4 (2 mirrored), val 2, test 2 pairs; cat, dog; 3 images each
root = tiny_pfwillow(tmp_path)   # test 4 pairs; car(G), duck(S); 3 images each
"""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy.io import savemat

from dataset.annotation import Labels, describe_category, describe_image, describe_object

SIZES = ((48, 64), (72, 56), (60, 60))  # (H, W) of the images 0, 1, 2 of every category
SPAIR_CATEGORIES = ("bird", "cat")
PASCAL_CATEGORIES = {"cat": 8, "dog": 12}
WILLOW_CATEGORIES = ("car(G)", "duck(S)")
SPAIR_SPLITS = {"trn": ((0, 1), (1, 2), (2, 0)), "val": ((0, 2),), "test": ((1, 0), (2, 1))}
COLOURS = ((214, 69, 65), (65, 131, 215), (38, 166, 91), (247, 202, 24), (155, 89, 182))


def object_points(size: tuple[int, int], count: int) -> np.ndarray:
    """(count, 2) whole pixels, at the same places of the object whatever the size (H, W) of its image."""
    angle = 2 * np.pi * np.arange(count) / count
    unit = np.stack([0.5 + 0.35 * np.cos(angle), 0.5 + 0.35 * np.sin(angle)], axis=1)
    return np.round(unit * (size[1] - 1, size[0] - 1))


def object_box(size: tuple[int, int]) -> list[int]:
    """x1 y1 x2 y2 around the object."""
    return [size[1] // 8, size[0] // 8, size[1] - size[1] // 8, size[0] - size[0] // 8]


def draw_image(path: Path, size: tuple[int, int], count: int = 5) -> None:
    """An ellipse with a dot of another colour at each of its `count` points, on a shaded ground."""
    height, width = size
    shade = np.linspace(90, 190, width, dtype=np.uint8)[None, :, None]
    image = Image.fromarray(np.broadcast_to(shade, (height, width, 3)).copy())
    pen = ImageDraw.Draw(image)
    pen.ellipse(object_box(size), fill=(230, 225, 210), outline=(20, 20, 20))
    for number, (x, y) in enumerate(object_points(size, count)):
        pen.ellipse([x - 2, y - 2, x + 2, y + 2], fill=COLOURS[number % len(COLOURS)])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=95)


def spair_annotation(category: str, number: int, src: int, trg: int, count: int = 5) -> dict:
    """The JSON record of a pair of images `src`, `trg` (0..2)."""
    names = [f"2008_{image:06d}" for image in (src, trg)]
    src_size, trg_size = SIZES[src], SIZES[trg]
    return {
        "pair_id": number,
        "filename": f"{number:06d}-{names[0]}-{names[1]}:{category}",
        "src_imname": f"{names[0]}.jpg",
        "trg_imname": f"{names[1]}.jpg",
        "src_imsize": [src_size[1], src_size[0], 3],
        "trg_imsize": [trg_size[1], trg_size[0], 3],
        "src_bndbox": object_box(src_size),
        "trg_bndbox": object_box(trg_size),
        "category": category,
        "src_pose": "Left",
        "trg_pose": "Left",
        "src_kps": object_points(src_size, count).astype(int).tolist(),
        "trg_kps": object_points(trg_size, count).astype(int).tolist(),
        "kps_ids": [str(2 * point) for point in range(count)],
        "mirror": 0,
        "viewpoint_variation": 1,
        "scale_variation": 0,
        "truncation": 2,
        "occlusion": 3,
    }


def tiny_spair(tmp_path: Path, categories: Sequence[str] = SPAIR_CATEGORIES) -> Path:
    """Writes `SPair-71k` below tmp_path and returns it."""
    root = tmp_path / "SPair-71k"
    for category in categories:
        for image, size in enumerate(SIZES):
            draw_image(root / "JPEGImages" / category / f"2008_{image:06d}.jpg", size)
    for split, pairs in SPAIR_SPLITS.items():
        records = [(category, *pair) for category in categories for pair in pairs]
        annotations = [spair_annotation(c, number, *pair) for number, (c, *pair) in enumerate(records, start=1)]
        folder = root / "PairAnnotation" / split
        folder.mkdir(parents=True)
        for annotation in annotations:
            (folder / f"{annotation['filename']}.json").write_text(json.dumps(annotation))
        layout = root / "Layout" / "large" / f"{split}.txt"
        layout.parent.mkdir(parents=True, exist_ok=True)
        layout.write_text("".join(f"{annotation['filename']}\n" for annotation in annotations))
    return root


def write_mat(root: Path, category: str, image: str, kps: np.ndarray, bbox: Sequence[float]) -> Path:
    """The annotation of a PF-PASCAL image; kps (N, 2) with NaN for absent points."""
    path = root / "PF-dataset-PASCAL" / "Annotations" / category / f"{image}.mat"
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"kps": np.asarray(kps, dtype=np.float64), "bbox": np.asarray([bbox], dtype=np.float64)})
    return path


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def tiny_pfpascal(tmp_path: Path) -> Path:
    """Writes `pf-pascal` below tmp_path and returns it. Image n of a category lacks its keypoint n (of 6)."""
    root = tmp_path / "pf-pascal"
    for number, category in enumerate(PASCAL_CATEGORIES):
        for image, size in enumerate(SIZES):
            name = f"2009_{number}{image:05d}"
            draw_image(root / "PF-dataset-PASCAL" / "JPEGImages" / f"{name}.jpg", size, count=6)
            kps = object_points(size, 6)
            kps[image] = np.nan
            write_mat(root, category, name, kps, object_box(size))

    def row(number: int, src: int, trg: int, *more: object) -> list[object]:
        images = [f"PF-dataset-PASCAL/JPEGImages/2009_{number}{image:05d}.jpg" for image in (src, trg)]
        return [*images, list(PASCAL_CATEGORIES.values())[number], *more]

    header = ["source_image", "target_image", "class"]
    pairs = [row(number, 0, 1, flip) for number in (0, 1) for flip in (0, 1)]
    write_csv(root / "trn_pairs.csv", [*header, "flip"], pairs)
    points = ["1;2", "3;4", "5;6", "7;8"]
    write_csv(
        root / "val_pairs.csv", [*header, "XA", "YA", "XB", "YB"], [row(number, 1, 2, *points) for number in (0, 1)]
    )
    write_csv(root / "test_pairs.csv", header, [row(number, 2, 0) for number in (0, 1)])
    return root


def willow_header(count: int = 10) -> list[str]:
    """imageA, imageB, XA1.., YA1.., XB1.., YB1.."""
    points = [f"{axis}{side}{n}" for side in "AB" for axis in "XY" for n in range(1, count + 1)]
    return ["imageA", "imageB", *points]


def tiny_pfwillow(tmp_path: Path) -> Path:
    """Writes `pf-willow` below tmp_path and returns it."""
    root = tmp_path / "pf-willow"
    for category in WILLOW_CATEGORIES:
        for image, size in enumerate(SIZES):
            draw_image(root / "PF-dataset" / category / f"img_{image:03d}.png", size, count=10)
    rows = []
    for category in WILLOW_CATEGORIES:
        for src, trg in ((0, 1), (1, 2)):
            images = [f"PF-dataset/{category}/img_{image:03d}.png" for image in (src, trg)]
            points = [object_points(SIZES[image], 10) for image in (src, trg)]
            rows.append([*images, *(float(value) for side in points for value in side.T.ravel())])
    write_csv(root / "test_pairs.csv", willow_header(), rows)
    return root


OWN_NAMES = ["a", "b", "c", "d", "e"]


def write_own_images(root: Path, count: int = 3, categories: Sequence[str] = SPAIR_CATEGORIES) -> dict[str, list]:
    """{category: [(image, (H, W), points (5, 2)), ...]}; images of one category have three different sizes."""
    found = {}
    for category in categories:
        rows = [(f"{category}/{n}.png", SIZES[n % 3]) for n in range(count)]
        for image, size in rows:
            draw_image(root / "images" / image, size)
        found[category] = [(image, size, object_points(size, 5)) for image, size in rows]
    return found


def coco_content(images: dict[str, list], hidden: Collection[tuple[str, int]] = ()) -> dict[str, list]:
    """COCO's content; hidden: (image, keypoint number) that are not labelled."""
    content = {"images": [], "annotations": [], "categories": []}
    for number, (category, rows) in enumerate(images.items(), start=1):
        content["categories"].append({"id": number, "name": category, "keypoints": OWN_NAMES})
        for image, (height, width), points in rows:
            key = len(content["images"]) + 1
            x1, y1, x2, y2 = object_box((height, width))
            values = [[0, 0, 0] if (image, n) in hidden else [*point, 1 + n % 2] for n, point in enumerate(points)]
            content["images"].append({"id": key, "file_name": image, "height": height, "width": width})
            content["annotations"].append(
                {"id": key, "image_id": key, "category_id": number, "bbox": [x1, y1, x2 - x1, y2 - y1]}
                | {"keypoints": np.ravel(values).tolist(), "num_keypoints": len(points)}
            )
    return content


def tiny_custom(tmp_path: Path) -> Path:
    """Writes `custom` with a COCO file for each split, of the same images, below tmp_path and returns it."""
    root = tmp_path / "custom"
    content = coco_content(write_own_images(root, count=2), {("cat/0.png", 1)})
    for split in SPAIR_SPLITS:
        (root / f"{split}.json").write_text(json.dumps(content))
    return root


def tiny_custom_list(tmp_path: Path) -> Path:
    """Writes `custom` with lists of pairs and keypoints.csv below tmp_path and returns it."""
    root = tmp_path / "custom"
    images = write_own_images(root, count=2)
    boxes = [f"{side}_{corner}" for side in ("src", "trg") for corner in ("x1", "y1", "x2", "y2")]
    rows = [
        [src, trg, category, *object_box(src_size), *object_box(trg_size)]
        for category, ((src, src_size, _), (trg, trg_size, _)) in images.items()
    ]
    for split in SPAIR_SPLITS:
        write_csv(root / f"{split}_pairs.csv", ["source", "target", "category", *boxes], rows)
    points = [
        [image, name, *point]
        for found in images.values()
        for image, _, kps in found
        for name, point in zip(OWN_NAMES, kps, strict=True)
    ]
    write_csv(root / "keypoints.csv", ["image", "keypoint", "x", "y"], points)
    return root


def to_coco(labels: Labels) -> dict:
    """The labels in COCO's format."""
    return {
        "categories": [describe_category(category) for category in labels.categories.values()],
        "images": [describe_image(image) for image in labels.images.values()],
        "annotations": [describe_object(thing) for thing in labels.objects],
    }
