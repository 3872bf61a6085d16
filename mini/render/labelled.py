"""Labelled pictures in place of your photos: python -m mini.render.labelled asset/own --images 30 --categories dog

Writes {folder}/images/*.jpg and {folder}/annotations.json, COCO keypoints as labelling tools export them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from engine.entry import entry_point
from mini.render.categories import CATEGORIES
from mini.render.files import save, write_json
from mini.render.render import instance_seed, random_size, render_scene
from utils.progress import progress

INFO = {"description": "pictures rendered by mini/render/labelled.py"}
_FIRST_INDEX = 400_000  # of instances that no benchmark of the mini world has


def write_labelled(folder: str | Path, categories: Sequence[str] = ("dog",), images: int = 30, first: int = 0) -> None:
    """Write `images` pictures of each category with one object each; first: number of the first instance."""
    folder, content = Path(folder), {"info": INFO, "images": [], "annotations": [], "categories": []}
    labels = folder / "annotations.json"
    if labels.exists() and json.loads(labels.read_text()).get("info") != INFO:
        raise FileExistsError(f"{labels} is not of rendered pictures, and would be lost; name another folder")
    for category_id, name in enumerate(categories, start=1):
        keypoints = [keypoint.replace(" ", "_") for keypoint in CATEGORIES[name].keypoints]
        content["categories"].append({"id": category_id, "name": name, "keypoints": keypoints, "skeleton": []})
        for number in progress(range(first, first + images), f"rendering {name}", unit="images"):
            seed = instance_seed("test", name, _FIRST_INDEX + number)
            scene = render_scene(seed, (name,), random_size(seed))
            key, file_name = len(content["images"]) + 1, f"{name}_{number:03d}.jpg"
            save(Image.fromarray(scene.image), folder / "images" / file_name, quality=95)
            height, width = scene.part.shape
            content["images"].append({"id": key, "file_name": file_name, "width": width, "height": height})
            x1, y1, x2, y2 = scene.objects[0].bbox
            points = [[0, 0, 0] if p is None else [*map(round, p), 2] for p in scene.objects[0].kps.values()]
            content["annotations"].append(
                {"id": key, "image_id": key, "category_id": category_id, "iscrowd": 0}
                | {"bbox": [x1, y1, x2 - x1 + 1, y2 - y1 + 1], "area": int((scene.part > 0).sum())}
                | {"keypoints": [value for point in points for value in point]}
                | {"num_keypoints": sum(point[2] > 0 for point in points)}
            )
    write_json(labels, content)


@entry_point()
def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m mini.render.labelled", description=__doc__)
    parser.add_argument("folder", help="folder that receives them")
    parser.add_argument("--images", type=int, default=30, help="of each category; default: %(default)s")
    parser.add_argument("--categories", nargs="+", choices=tuple(CATEGORIES), default=["dog"], help="default: dog")
    args = parser.parse_args()
    write_labelled(args.folder, args.categories, args.images)
    print(f"written: {args.folder} ({len(args.categories) * args.images} pictures)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
