"""Annotation transfer: formats, parity with a plain loop of the matcher, resuming, processes, refusals, scores."""

import json

import pytest

from dataset.annotation import to_coco
from sd4match import Matcher, Transfer
from tests.fixtures_dataset import draw_image, object_box, object_points

NAMES = ["top", "left_eye", "right_eye", "left_foot", "right_foot"]
SKELETON = [[1, 2], [1, 3]]
SIZES = ((48, 64), (72, 56), (60, 60), (64, 80), (50, 50), (66, 44))  # (H, W)


def coco(folder, numbers, first=0, names=NAMES, category="bird", boxes=False, points=True):
    """COCO's format of the images `numbers`, whose pictures are drawn in `folder`."""
    images, annotations = [], []
    for number in numbers:
        size, name = SIZES[number % len(SIZES)], f"{number}.png"
        draw_image(folder / name, size)
        images.append({"id": number + 10, "file_name": name, "width": size[1], "height": size[0]})
        kps = [[x, y, 2] for x, y in object_points(size, len(names)).tolist()]
        x1, y1, x2, y2 = object_box(size)
        record = {"id": number + 100, "image_id": number + 10, "category_id": 7, "iscrowd": 0}
        record |= {"keypoints": sum(kps, []), "num_keypoints": len(kps)} if points else {}
        annotations.append(record | ({"bbox": [x1, y1, x2 - x1, y2 - y1]} if boxes else {}))
    kind = {"id": 7, "name": category, "supercategory": "animal", "keypoints": names, "skeleton": SKELETON}
    return {"images": images, "annotations": annotations, "categories": [kind]}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


@pytest.fixture(scope="module")
def matcher(world, tmp_path_factory):
    settings = {"NETWORK.NAME": "tiny", "OUTPUT_ROOT": str(tmp_path_factory.mktemp("out")), "EVAL.BATCH_SIZE": 2}
    return Matcher.from_pretrained(
        str(world.root / "sd"), device="cpu", image_size=64, ensemble=1, seed=3, settings=settings
    )


@pytest.fixture
def labelled(tmp_path):
    """Two labelled images and a folder of four others."""
    write(tmp_path / "labelled" / "labels.json", coco(tmp_path / "labelled", [0, 1]))
    write(tmp_path / "truth.json", coco(tmp_path / "images", [2, 3, 4, 5]))
    return tmp_path


def test_main_path(matcher, labelled):
    found = Transfer(matcher, labelled / "labelled")(labelled / "images")
    content = to_coco(found)
    assert [image["file_name"] for image in content["images"]] == ["2.png", "3.png", "4.png", "5.png"]
    assert content["categories"][0]["skeleton"] == SKELETON and content["categories"][0]["supercategory"] == "animal"
    assert all(len(annotation["keypoints"]) == 15 for annotation in content["annotations"])
