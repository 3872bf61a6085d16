"""CUB-200-2011, and the thresholds of LDM_correspondences beside the usual ones."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from dataset import DatasetError, build_benchmark
from dataset.pair_dataset import PairDataset, judging_box
from dataset.pfwillow import PFWillow
from dataset.record import threshold
from dataset.spair import SPair
from tests.fixtures_dataset import tiny_pfwillow, tiny_spair
from utils.frame import Stretch

CLASSES = ("001.Black", "002.Laysan", "003.Sooty", "004.Groove")
SIZE = (40, 80)  # (H, W)


def tiny_cub(root, wrong=None):
    """Two training and three test images of each class; the last test image shows part 15 alone."""
    root = root / "CUB_200_2011"
    lines = {name: [] for name in ("images", "image_class_labels", "train_test_split", "bounding_boxes", "part_locs")}
    number = 0
    for label, category in enumerate(CLASSES, start=1):
        (root / "images" / category).mkdir(parents=True)
        for image in range(5):
            number += 1
            name = f"{category}/bird_{label}_{image}.jpg"
            Image.new("RGB", SIZE[::-1], (image * 40, 100, 50)).save(root / "images" / name)
            lines["images"].append(f"{number} {name}")
            lines["image_class_labels"].append(f"{number} {label}")
            lines["train_test_split"].append(f"{number} {int(image < 2)}")
            lines["bounding_boxes"].append(f"{number} 10.0 5.0 20.0 30.0")
            for part in range(1, 16):
                visible = part == 15 if image == 4 else part != 15 and part % 5 != image
                lines["part_locs"].append(f"{number} {part} {part * 2.0} {part + 4.5} {int(visible)}")
    lines["classes"] = [f"{label} {category}" for label, category in enumerate(CLASSES, start=1)]
    if wrong:
        name, line = wrong
        lines[name][0] = line
    (root / "parts").mkdir()
    for name, content in lines.items():
        (root / ("parts" if name == "part_locs" else ".") / f"{name}.txt").write_text("\n".join(content) + "\n")
    return root


def test_every_two_images_of_a_class_are_a_pair(tmp_path):
    root = tiny_cub(tmp_path)
    test, all_classes = (build_benchmark("cub", root, split) for split in ("test", "test_all"))
    assert test.categories == CLASSES[:3] and all_classes.categories == CLASSES
    assert [record.pair_id for record in test] == ["3-4:001.Black", "8-9:002.Laysan", "13-14:003.Sooty"]
    assert len(test.left_out) == 6 and "no part is visible in both images" in test.left_out[0]
    assert len(build_benchmark("cub", root, "trn")) == 3 and len(all_classes) == 4
    record = test[0]
    assert record.kps_ids == ("1", "4", "5", "6", "9", "10", "11", "14")  # neither part % 5 == 2 nor 3, nor 15
    assert record.src_kps[1].tolist() == [8.0, 8.5] and record.src.size == SIZE
    assert record.trg_bbox.tolist() == [10, 5, 30, 35]


@pytest.mark.parametrize(
    "wrong, said",
    [
        (("images", "1 ../bird.jpg"), "'path' is '../bird.jpg', expected a path below"),
        (("bounding_boxes", "99 1 2 3 4"), "bounding_boxes.txt: '1' is missing"),
        (("bounding_boxes", "1 1 2 x 4"), "'width' is 'x', expected a number"),
        (("part_locs", "1 16 1 1 1"), "'part' is '16', expected a whole number 1..15"),
        (("train_test_split", "1"), "has not 2 words"),
        (("image_class_labels", "2 1"), "stands there twice"),
    ],
)
def test_annotations_that_are_wrong(tmp_path, wrong, said):
    with pytest.raises(DatasetError, match=said):
        build_benchmark("cub", tiny_cub(tmp_path, wrong), "trn")


def thresholds(benchmark, size=512):
    item = PairDataset(benchmark, size)[0]
    return item["pck_threshold"], item["pck_threshold_orig"]


def test_thresholds_of_cub(tmp_path):
    """The box is 20 x 30 px of an image of 80 x 40: usual 30 * 512 / 40, in the release 30 * 512 / 80."""
    root = tiny_cub(tmp_path)
    assert thresholds(build_benchmark("cub", root, "test")) == (30 * 512 / 40, 30)
    assert thresholds(build_benchmark("cub", root, "test", threshold_rule="bbox_width")) == (30 * 512 / 80, 30)


def test_thresholds_of_spair_by_source_and_target(tmp_path):
    record = SPair(tiny_spair(tmp_path), "test")[0]
    record = replace(record, src_bbox=np.array([0, 0, 10, 20.0]), trg_bbox=np.array([5, 5, 35, 10.0]))
    boxes = {rule: judging_box(rule, record, Stretch((512, 512))) for rule in ("bbox", "src_bbox")}
    (src_height, _), (_, trg_width) = record.src.size, record.trg.size
    assert threshold("bbox", boxes["bbox"], record.trg_kps, (512, 512)) == pytest.approx(30 * 512 / trg_width)
    assert threshold("src_bbox", boxes["src_bbox"], record.trg_kps, (512, 512)) == pytest.approx(20 * 512 / src_height)
    assert judging_box("src_bbox", record) is record.src_bbox


def test_thresholds_of_pfwillow_with_padding(tmp_path):
    root = tiny_pfwillow(tmp_path)
    strict, padded = (PFWillow(root, "test", threshold_rule=rule) for rule in ("", "padded_kps"))
    record = strict[0]
    px = record.trg_kps * np.array([512 / record.trg.size[1], 512 / record.trg.size[0]])
    assert thresholds(strict)[0] == pytest.approx(np.ptp(px, axis=0).max())
    assert thresholds(padded)[0] == pytest.approx(px.max() + 1)
