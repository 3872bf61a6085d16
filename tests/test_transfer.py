"""Annotation transfer: formats, parity with a plain loop of the matcher, resuming, processes, refusals, scores."""

import csv
import itertools
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageOps

from config import ROOT, load_config
from dataset import DatasetError
from dataset.annotation import Category, LabelledImage, LabelledObject, Labels, read_labels
from sd4match import Matcher, Transfer, label_job
from sd4match.label import choose_threshold, find_targets, vote_robustly
from sd4match.label_score import score_labels
from tests.command import call
from tests.fixtures_dataset import draw_image, object_box, object_points, to_coco

NAMES = ["top", "left_eye", "right_eye", "left_foot", "right_foot"]
SKELETON = [[1, 2], [1, 3]]
SIZES = ((48, 64), (72, 56), (60, 60), (64, 80), (50, 50), (66, 44))  # (H, W)


def coco(folder, numbers, names=NAMES, category="bird", boxes=False, points=True):
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
    kind = {"id": 7, "name": category, "supercategory": "animal", "keypoints": names}
    kind["skeleton"] = SKELETON if len(names) > 2 else []
    return {"images": images, "annotations": annotations, "categories": [kind]}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def points_of(labels):
    """{(file, category, keypoint): (x, y, visibility)} of the labelled points."""
    found = {}
    for thing in labels.objects:
        category, image = labels.categories[thing.category_id], labels.images[thing.image_id]
        for name, point in zip(category.keypoints, thing.points.tolist(), strict=True):
            if point[2]:
                found[image.file_name, category.name, name] = tuple(point)
    return found


def tiny_flags(world):
    return ["--network", str(world.root / "sd"), "--image_size", "64", "--ensemble", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def matcher(world, tmp_path_factory):
    settings = {"NETWORK.NAME": "tiny", "OUTPUT_ROOT": str(tmp_path_factory.mktemp("out")), "EVAL.BATCH_SIZE": 2}
    settings |= {"METHOD.POSTERIOR": "mode"}
    place = str(world.root / "sd")
    return Matcher.from_pretrained(place, device="cpu", image_size=64, ensemble=1, settings=settings)


@pytest.fixture
def labelled(tmp_path):
    """Two labelled images, and a folder of four others whose labels are in truth.json."""
    write(tmp_path / "labelled" / "labels.json", coco(tmp_path / "labelled", [0, 1]))
    write(tmp_path / "truth.json", coco(tmp_path / "images", [2, 3, 4, 5], boxes=True))
    return tmp_path


@pytest.fixture
def run(world, labelled, monkeypatch, capfd):
    """run(*flags) -> (status, stdout, stderr) of transfer.py with the tiny networks, in a folder with `labelled`."""
    monkeypatch.chdir(labelled)

    def run(*flags, base=("--references", "labelled", "--images", "images", "--output", "out.json")):
        return call("transfer.py", *base, *flags, *tiny_flags(world)), *capfd.readouterr()

    return run


# ---- formats ------------------------------------------------------------------------------------------------------


def test_coco_comes_back_as_it_was(tmp_path):
    content = coco(tmp_path, [0, 1], boxes=True)
    content["annotations"][0] |= {"keypoints": [*content["annotations"][0]["keypoints"][:12], 0, 0, 0]}
    content["annotations"][0] |= {"num_keypoints": 4, "area": 321.5, "segmentation": [[1, 1, 9, 1, 9, 9.5]]}
    content["annotations"][1] |= {"track": 5, "area": 12}
    content["categories"][0]["flip_pairs"] = [["left_eye", "right_eye"]]
    back = to_coco(read_labels(write(tmp_path / "a.json", content)))
    for part in ("images", "categories", "annotations"):
        assert back[part] == content[part]
    assert to_coco(read_labels(write(tmp_path / "b.json", back))) == back


def test_labelme_and_csv_say_the_same_as_coco(tmp_path):
    content = coco(tmp_path, [0, 1])
    expected = points_of(read_labels(write(tmp_path / "coco" / "a.json", content), tmp_path))
    rows = ["image,keypoint,x,y,category,visible"]
    for image, annotation in zip(content["images"], content["annotations"], strict=True):
        kps = np.reshape(annotation["keypoints"], (-1, 3)).tolist()
        rows += [f"{image['file_name']},{name},{x},{y},bird,{v}" for name, (x, y, v) in zip(NAMES, kps, strict=True)]
        shapes = [
            {"label": n, "points": [[x, y]], "shape_type": "point", "group_id": 1}
            for n, (x, y, _) in zip(NAMES, kps, strict=True)
        ]
        shapes.append({"label": "bird", "points": [[30, 40], [3, 4]], "shape_type": "rectangle", "group_id": 1})
        shapes.append({"label": "sky", "points": [[0, 0], [9, 0], [9, 9]], "shape_type": "polygon", "group_id": None})
        record = {"shapes": shapes, "imagePath": f"..\\{image['file_name']}", "imageWidth": image["width"]}
        write(tmp_path / "labelme" / f"{image['id']}.json", record | {"imageHeight": image["height"]})
    (tmp_path / "points.csv").write_text("\n".join(rows))
    assert points_of(read_labels(tmp_path / "points.csv")) == expected
    found = read_labels(tmp_path / "labelme")
    assert {(file[3:], *rest): point for (file, *rest), point in points_of(found).items()} == expected
    assert [thing.bbox.tolist() for thing in found.objects] == [[3, 4, 30, 40]] * 2
    assert found.categories[1].keypoints == tuple(NAMES) and len(found.images) == 2
    again = read_labels(write(tmp_path / "again" / "a.json", to_coco(found)))
    assert points_of(again) == points_of(found)


def test_hidden_points_and_several_objects(tmp_path):
    draw_image(tmp_path / "a.png", (48, 64))
    point = {"shape_type": "point", "points": [[5, 6]]}
    shapes = [point | {"label": "tip", "group_id": g, "flags": {"occluded": g == 2}} for g in (1, 2)]
    write(tmp_path / "a.json", {"imagePath": "a.png", "shapes": shapes})
    first, second = read_labels(tmp_path / "a.json", category="pen").objects
    assert first.points.tolist() == [[5, 6, 2]] and second.points.tolist() == [[5, 6, 1]]
    lines = ["image,keypoint,x,y,object,visible", "a.png,tip,5,6,1,", "a.png,end,,,1,0", "a.png,tip,7,8,2,1"]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    found = read_labels(tmp_path / "a.csv")
    assert [thing.points.tolist() for thing in found.objects] == [[[5, 6, 2], [0, 0, 0]], [[7, 8, 1], [0, 0, 0]]]
    assert [category.name for category in found.categories.values()] == ["object"]


def test_several_files_are_one_set(tmp_path):
    write(tmp_path / "all" / "a.json", coco(tmp_path / "all", [0], names=["top", "left_eye"]))
    write(tmp_path / "all" / "b.json", coco(tmp_path / "all", [0, 1], names=["left_eye", "top", "tail"]))
    found = read_labels(tmp_path / "all")
    assert found.categories[1].keypoints == ("top", "left_eye", "tail")
    assert [thing.id for thing in found.objects] == [1, 2, 3] and list(found.images) == [1, 2, 3]
    assert found.objects[0].points[2].tolist() == [0, 0, 0]
    assert found.objects[1].points[1].tolist() == [*object_points(SIZES[0], 3)[0], 2]


def test_masks_of_every_kind(tmp_path):
    expected = np.zeros((48, 64), bool)
    expected[10:21, 5:31] = True
    content = coco(tmp_path, [0])
    runs = [int(len(list(group))) for _, group in itertools.groupby(expected.T.ravel())]
    codes = [[[5, 10, 30, 10, 30, 20, 5, 20]], {"size": [48, 64], "counts": runs}]
    coder = pytest.importorskip("pycocotools.mask")
    packed = coder.encode(np.asfortranarray(expected.astype(np.uint8)))
    codes.append(packed | {"counts": packed["counts"].decode()})
    for code in codes:
        content["annotations"][0]["segmentation"] = code
        (thing,) = read_labels(write(tmp_path / "a.json", content)).objects
        np.testing.assert_array_equal(thing.find_mask((48, 64)), expected)
        if isinstance(code, dict):  # polygons fit every size
            with pytest.raises(DatasetError, match="mask is 64 x 48 px, but its image"):
                thing.find_mask((10, 10))


@pytest.mark.parametrize(
    ("names", "more", "flip"),
    [
        (["nose", "left_eye", "right_eye"], {}, (0, 2, 1)),
        (["L_eye", "R_eye", "nose"], {}, (1, 0, 2)),
        (["LeftEye", "tail", "RightEye"], {}, (2, 1, 0)),
        (["eye l", "eye r"], {}, (1, 0)),
        (["ball", "red"], {}, None),
        (["left_eye", "tail"], {}, None),
        (["1", "2", "3"], {"flip_pairs": [[0, 2]]}, (2, 1, 0)),
        (["1", "2"], {"flip_pairs": []}, (0, 1)),
    ],
)
def test_left_and_right(names, more, flip):
    assert Category(1, "thing", tuple(names), (), more).find_flip() == flip


# ---- against a plain loop -----------------------------------------------------------------------------------------


def plain_loop(matcher, references, images, mirror):
    """(images, K, 3): of all references, the most confident match of each point."""
    labels = read_labels(references)
    results = []
    for path in images:
        best = np.zeros((len(NAMES), 3))
        for thing in labels.objects:
            image = Image.open(labels.images[thing.image_id].path).convert("RGB")
            found = [matcher.pair(image, path, category="bird").match(thing.points[:, :2])]
            order = [list(range(5))]
            if mirror:
                points = thing.points[:, :2] * [-1, 1] + [image.width - 1, 0]
                found.append(matcher.pair(ImageOps.mirror(image), path, category="bird").match(points))
                order.append([0, 2, 1, 4, 3])
            chosen = max(range(len(found)), key=lambda i: found[i].confidence.mean())
            confidences = found[chosen].confidence.clip(1e-4).round(4)  # as they are kept
            for k, xy, confidence in zip(order[chosen], found[chosen].points, confidences, strict=True):
                if confidence > best[k, 2]:
                    best[k] = [*xy, confidence]
        results.append(best)
    return np.array(results)


@pytest.mark.parametrize("mirror", [False, True])
def test_as_a_plain_loop_of_the_matcher(matcher, labelled, mirror):
    images = sorted((labelled / "images").glob("*.png"))
    found = Transfer(matcher, labelled / "labelled", mirror=mirror, visible=0.0)(labelled / "images")
    expected = plain_loop(matcher, labelled / "labelled", images, mirror)
    np.testing.assert_allclose([np.reshape(o.more["found"], (-1, 3)) for o in found.objects], expected, atol=6e-3)
    np.testing.assert_allclose([o.points[:, :2] for o in found.objects], expected[..., :2], atol=6e-3)


def test_a_mirrored_reference_matches_a_mirrored_image(matcher, tmp_path):
    """A picture and its mirror image: the mirrored reference is taken, and left is left again."""
    rng = np.random.default_rng(0)
    pixels = np.kron(rng.integers(0, 255, (8, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    image = Image.fromarray(pixels)
    content = coco(tmp_path / "labelled", [2])
    content["images"][0] |= {"width": 64, "height": 64}
    image.save(tmp_path / "labelled" / "2.png")
    content["annotations"][0]["keypoints"] = [32, 8, 2, 20, 20, 2, 44, 20, 2, 12, 52, 2, 0, 0, 0]
    write(tmp_path / "labelled" / "labels.json", content)
    job = Transfer(matcher, tmp_path / "labelled", visible=0.0)
    ((record, straight),) = [list(job.match(find_targets(job.labels, [ImageOps.mirror(image), image])))]
    assert straight["objects"][0]["votes"][0]["mirrored"] == 0
    (vote,) = record["objects"][0]["votes"]
    found = {NAMES[k]: (x, y) for k, x, y, _ in vote["points"]}
    expected = {"top": (31, 8), "right_eye": (43, 20), "left_eye": (19, 20), "right_foot": (51, 52)}
    assert vote["mirrored"] == 1 and found.keys() == expected.keys()
    for name, place in expected.items():
        np.testing.assert_allclose(found[name], place, atol=16)


def test_boxes_are_cut_out_and_points_come_back(matcher, labelled):
    write(labelled / "labelled" / "labels.json", coco(labelled / "labelled", [0], boxes=True))
    boxes = read_labels(labelled / "truth.json", labelled / "images")
    found = Transfer(matcher, labelled / "labelled", mirror=False, margin=0.05, visible=0.0)(boxes)
    assert [thing.id for thing in found.objects] == [102, 103, 104, 105]  # those of the boxes
    cuts = []
    for number in (0, 2):
        size = SIZES[number]
        x1, y1, x2, y2 = object_box(size)
        room = 0.05 * max(x2 - x1, y2 - y1)
        edges = np.array([np.floor(x1 - room), np.floor(y1 - room), np.ceil(x2 + room), np.ceil(y2 + room)])
        edges = edges.clip(0, [size[1], size[0], size[1], size[0]]).astype(int)
        place = labelled / ("images" if number else "labelled") / f"{number}.png"
        cuts.append((Image.open(place).convert("RGB").crop(tuple(edges.tolist())), edges[:2]))
    (source, corner), (target, shift) = cuts
    points = object_points(SIZES[0], 5) - corner
    expected = matcher.pair(source, target, category="bird").match(points).points + shift
    np.testing.assert_allclose(found.objects[0].points[:, :2], expected, atol=6e-3)
    whole = Transfer(matcher, labelled / "labelled", mirror=False, crop=False, visible=0.0)(boxes)
    assert not np.allclose(whole.objects[0].points[:, :2], expected, atol=0.5)


def test_masks_limit_where_points_are_found(matcher, labelled):
    boxes = read_labels(labelled / "truth.json", labelled / "images")
    left = [
        {"size": list(i.size), "counts": [0, i.size[0] * (i.size[1] // 2), i.size[0] * -(-i.size[1] // 2)]}
        for i in boxes.images.values()
    ]
    content = to_coco(boxes)
    for annotation, mask in zip(content["annotations"], left, strict=True):
        annotation |= {"segmentation": mask, "bbox": None}
    masks = read_labels(write(labelled / "masks.json", content), labelled / "images")
    found = Transfer(matcher, labelled / "labelled", crop=False, visible=0.0)(masks)
    free = Transfer(matcher, labelled / "labelled", crop=False, visible=0.0)(labelled / "images")
    widths = [image.size[1] for image in masks.images.values()]
    halves = [
        np.array([o.points[:, 0].max() / w for o, w in zip(x.objects, widths, strict=True)]) for x in (found, free)
    ]
    assert (halves[0] < 0.55).all() and (halves[1] > 0.55).any()
    cut = Transfer(matcher, labelled / "labelled", visible=0.0)(masks)  # cut out around the masks
    assert all(o.points[:, 0].max() / w < 0.55 for o, w in zip(cut.objects, widths, strict=True))


def test_a_prompt_made_from_the_pair(world, tmp_path, labelled):
    from model.prompt import new_prompt
    from model.prompt.build import load_text
    from model.prompt.store import save_prompt
    from tests import tiny

    cfg = load_config(None, world.opts(tmp_path / "out", "PROMPT.TYPE", "CPM_spair_tiny_Pair-DINO-Feat-G2-C3"))
    learned = new_prompt(cfg.PROMPT.TYPE, load_text(cfg), categories=["bird"], condition_shape=tiny.DINO_SHAPE)
    save_prompt(tmp_path / "out" / "prompt" / cfg.PROMPT.TYPE, learned)
    matcher = Matcher.from_config(cfg)
    assert matcher.depends_on_pair
    found = Transfer(matcher, labelled / "labelled", mirror=False, visible=0.0)(labelled / "images")
    expected = plain_loop(matcher, labelled / "labelled", sorted((labelled / "images").glob("*.png")), False)
    np.testing.assert_allclose([np.reshape(o.more["found"], (-1, 3)) for o in found.objects], expected, atol=0.02)


SMALL_DINO = ("METHOD.DINO_SIZE", "[56, 56]")


@pytest.mark.parametrize("method", ["dift", "dinov2", "sd_dino", "cleandift", "ldm_correspondence"])
def test_with_every_kind_of_matcher(world, tmp_path, labelled, method):
    """With a mask, which methods that match point by point keep to as well."""
    if method == "ldm_correspondence":
        from tests.test_ldm_correspondence import settings

        cfg = settings(world, tmp_path / "out")
    else:
        dino = ("METHOD.DINO_FOLDER", str(world.root / "dino"), *SMALL_DINO, "TEST.ENSEMBLE", "1")
        cfg = load_config(None, world.opts(tmp_path / "out", "METHOD.NAME", method, *dino))
    content = coco(labelled / "images", [2])
    content["annotations"][0]["segmentation"] = [[0, 0, 29, 0, 29, 59, 0, 59]]  # the left half of 60 x 60 px
    targets = read_labels(write(labelled / "masks.json", content), labelled / "images")
    job = Transfer(Matcher.from_config(cfg), labelled / "labelled", crop=False, visible=0.0, mirror=False)
    (found,) = job(targets).objects
    assert np.isfinite(found.points).all() and (found.points[:, 2] == 2).all() and found.points[:, 0].max() < 34
    assert label_job.describe_matches(job)["matcher"]["METHOD.NAME"] == method


def test_images_are_read_as_they_are_needed(matcher, labelled):
    job, taken = Transfer(matcher, labelled / "labelled"), []

    def endless():
        for number in itertools.count():
            taken.append(number)
            yield find_targets(job.labels, [labelled / "images" / "2.png"])[0]

    records = job.match(endless())
    for _ in range(5):
        next(records)
    assert len(taken) <= 10  # batches of 2, one read ahead


# ---- combining, visibility ----------------------------------------------------------------------------------------


def test_a_vote_overrules_one_that_is_far_off():
    found = np.array([[10, 10, 0.5], [12, 10, 0.5], [90, 90, 0.9]])
    x, y, confidence = vote_robustly(found, radius=5)
    assert (x, y) == (pytest.approx(11), pytest.approx(10))
    assert confidence == pytest.approx(0.5 * (1 + np.exp(-((2 / 5) ** 2))) / 3)


def test_combining_by_key(matcher, labelled):
    votes = [[[0, 10, 10, 0.5]], [[0, 12, 10, 0.5]], [[0, 90, 90, 0.9], [2, 1, 2, 0.3]]]
    record = {"side": 100, "votes": [{"points": points} for points in votes]}
    confident = Transfer(matcher, labelled / "labelled", combine="confident").combine(record, 3)
    assert confident.tolist() == [[90, 90, 0.9], [0, 0, 0], [1, 2, 0.3]]
    vote = Transfer(matcher, labelled / "labelled", combine="vote", radius=0.05).combine(record, 3)
    assert vote[0, :2] == pytest.approx([11, 10]) and vote[1].tolist() == [0, 0, 0]
    wide = Transfer(matcher, labelled / "labelled", combine="vote", radius=2.0).combine(record, 3)
    assert wide[0, 0] > 40


def test_the_threshold_with_the_best_balanced_accuracy():
    confidence = np.array([0.9, 0.1, 0.5, 0.4, 0.3, 0.2])
    right = np.array([True, False, True, False, True, False])
    assert choose_threshold(confidence, right) == 0.3  # 3 of 3 right, 2 of 3 wrong; 0.5: 2 of 3 and 3 of 3
    assert choose_threshold(confidence, np.ones(6, bool)) == choose_threshold(confidence, np.zeros(6, bool)) == 0
    assert choose_threshold(np.array([0.5, 0.5, 0.5, 0.7]), np.array([True, False, False, True])) == 0.7


def test_visibility_is_chosen_on_labelled_images(matcher, labelled):
    job = Transfer(matcher, labelled / "labelled", mirror=False)
    value, count = job.find_threshold()
    a, b = read_labels(labelled / "labelled").objects
    pictures = [labelled / "labelled" / f"{n}.png" for n in (0, 1)]
    confidence, right = [], []
    for (one, other), (src, trg) in (((a, b), pictures), ((b, a), pictures[::-1])):
        found = matcher.pair(src, trg, category="bird").match(one.points[:, :2])
        extent = np.ptp(other.points[:, :2], axis=0).max()
        right += list(np.linalg.norm(found.points - other.points[:, :2], axis=1) <= 0.1 * extent)
        confidence += list(found.confidence)
    assert count == 10 and value == pytest.approx(choose_threshold(np.array(confidence), np.array(right)), abs=1e-4)
    truth = read_labels(labelled / "truth.json", labelled / "images")
    assert job.find_threshold(truth)[1] == 20
    assert Transfer(matcher, labelled / "labelled", visible=0.25).find_threshold() == (0.25, 0)
    hidden = Transfer(matcher, labelled / "labelled", visible=1.0)(labelled / "images")
    assert all(not o.points.any() and np.any(o.more["found"]) for o in hidden.objects)


# ---- the command --------------------------------------------------------------------------------------------------


def test_labels_and_a_list_of_what_to_look_at_first(run, labelled):
    status, _, err = run("TRANSFER.VISIBLE", "0.0")
    content = json.loads((labelled / "out.json").read_text())
    assert status == 0 and f"written: {labelled.name and 'out.json'} (4 images)" in err
    assert [image["file_name"] for image in content["images"]] == ["2.png", "3.png", "4.png", "5.png"]
    assert [image["width"] for image in content["images"]] == [60, 80, 50, 44]
    assert content["categories"] == coco(labelled / "images", [2])["categories"]
    assert all(annotation["num_keypoints"] == 5 for annotation in content["annotations"])
    assert content["info"]["transfer"]["VISIBLE"] == 0 and content["info"]["matcher"]["timestep"] == 261
    rows = list(csv.DictReader((labelled / "out_review.csv").open()))
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores) and {int(row["annotation_id"]) for row in rows} == {1, 2, 3, 4}
    for row in rows:
        (one,) = [a for a in content["annotations"] if a["id"] == int(row["annotation_id"])]
        assert float(row["confidence"]) == min(one["found"][2::3]) and one["score"] == float(row["score"])
    assert read_labels(labelled / "out.json", labelled / "images").objects[0].points.shape == (5, 3)


def test_unreadable_images_are_told_skipped_listed_and_tried_again(run, labelled):
    good = (labelled / "images" / "3.png").read_bytes()
    (labelled / "images" / "3.png").write_bytes(b"no image")
    status, _, err = run()
    content = json.loads((labelled / "out.json").read_text())
    assert status == 1 and "skipped: images/3.png cannot be opened" in err
    assert "1 of 4 images could not be read and were skipped; out.json lists them" in err
    assert [entry["file_name"] for entry in content["info"]["skipped"]] == ["3.png"]
    assert [image["file_name"] for image in content["images"]] == ["2.png", "4.png", "5.png"]
    (labelled / "images" / "3.png").write_bytes(good)
    assert run()[0] == 0 and len(json.loads((labelled / "out.json").read_text())["images"]) == 4


def test_a_picture_of_another_size_than_its_objects_is_skipped(run, labelled):
    draw_image(labelled / "images" / "3.png", (65, 80))
    status, _, err = run("--boxes", "truth.json")
    assert status == 1 and "skipped: images/3.png is 80 x 65 px, but its labels are of 80 x 64; label it again" in err
    assert [entry["file_name"] for entry in json.loads((labelled / "out.json").read_text())["info"]["skipped"]] == [
        "3.png"
    ]


def test_a_name_that_is_no_text(run, labelled):
    (labelled / "images" / "5.png").rename(labelled / "images" / os.fsdecode(b"\xff.png"))
    assert run()[0] == 0
    content = json.loads((labelled / "out.json").read_text())
    assert os.fsencode(content["images"][-1]["file_name"]) == b"\xff.png"
    assert b"\xff.png" in (labelled / "out_review.csv").read_bytes()


def test_what_is_kept_is_used_until_something_changes(run, labelled, monkeypatch):
    matched = []
    match = Transfer.match

    def count(self, targets):
        for record in match(self, targets):
            matched.append(record["name"])
            yield record

    monkeypatch.setattr(Transfer, "match", count)
    assert run()[0] == 0 and len(matched) == 6  # the references are matched with each other
    first = (labelled / "out.json").read_bytes()
    assert run()[0] == 0 and len(matched) == 6 and (labelled / "out.json").read_bytes() == first
    assert run("TRANSFER.COMBINE", "vote", "TRANSFER.VISIBLE", "0.0")[0] == 0 and len(matched) == 6
    assert (labelled / "out.json").read_bytes() != first
    draw_image(labelled / "images" / "4.png", (61, 60))  # another picture
    assert run()[0] == 0 and matched[6:] == ["4.png"]
    assert run("TRANSFER.MIRROR", "False")[0] == 0 and len(matched) == 13
    assert run("--timestep", "100")[0] == 0 and len(matched) == 19
    labels = coco(labelled / "labelled", [0, 1])
    labels["annotations"][0]["keypoints"][0] += 1
    write(labelled / "labelled" / "labels.json", labels)
    assert run()[0] == 0 and len(matched) == 25
    assert run("--labelled", "truth.json")[0] == 0 and len(matched) == 29


def test_a_second_run_asks_no_reference(run, monkeypatch):
    assert run()[0] == 0
    monkeypatch.setattr(Transfer, "_ask", lambda *args: pytest.fail("a reference was matched again"))
    assert run()[0] == 0


def test_labels_of_a_transfer_are_references_once_they_are_accepted(run, labelled):
    assert run()[0] == 0
    content = json.loads((labelled / "out.json").read_text())
    for image in content["images"]:
        image["file_name"] = f"../images/{image['file_name']}"
    for accepted in (0, 1):
        content["annotations"][0]["review"] = "accepted" if accepted else "rejected"
        write(labelled / "labelled" / "more.json", content)
        assert run()[0] == 0
        assert json.loads((labelled / "out.json").read_text())["info"]["references"] == 2 + accepted
    status, _, err = run("--references", "out.json", "--reference_images", "images", "--output", "again.json")
    assert status == 1 and "out.json: no reference there; what a transfer labelled is one once it is accepted" in err


def dying_after(lines):
    """label_job.append_record, but the process is killed while it writes the line after so many."""
    append, written = label_job.append_record, []

    def append_or_die(file, record):
        written.append(record)
        if len(written) > lines:
            file.write(json.dumps(record).encode()[:50])
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        append(file, record)

    return append_or_die


def test_killed_in_the_middle_of_a_line_the_same_command_ends_in_the_same_file(run, labelled):
    assert run("EVAL.BATCH_SIZE", "1")[0] == 0
    whole = (labelled / "out.json").read_bytes(), (labelled / "out_review.csv").read_bytes()
    for lines in (0, 2):
        for path in [labelled / "out.json", *labelled.glob("out.json.matches/*/*.jsonl")]:
            path.unlink()
        if (child := os.fork()) == 0:
            label_job.append_record = dying_after(lines)
            run("EVAL.BATCH_SIZE", "1")
            os._exit(0)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL and not (labelled / "out.json").exists()
        assert run("EVAL.BATCH_SIZE", "1")[0] == 0
        assert ((labelled / "out.json").read_bytes(), (labelled / "out_review.csv").read_bytes()) == whole


def test_ctrl_c_keeps_what_was_done(run, labelled, monkeypatch):
    match = Transfer.match

    def stop(self, targets):
        yield next(match(self, targets))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Transfer, "match", stop)
        status, _, err = run()
    assert status == 130 and "the same command goes on from it" in err and not (labelled / "out.json").exists()
    assert run()[0] == 0


@pytest.mark.slow
def test_two_processes_are_one(world, labelled):
    contents = []
    for processes in (1, 2):
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] if processes == 2 else []
        output = labelled / f"{processes}.json"
        flags = ["--references", labelled / "labelled", "--images", labelled / "images", "--output", output]
        command = [
            sys.executable,
            *launcher,
            "transfer.py",
            *map(str, flags),
            *tiny_flags(world),
            "EVAL.BATCH_SIZE",
            "1",
        ]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert len(list(labelled.glob(f"{processes}.json.matches/*/*.jsonl"))) == processes
        contents.append(output.read_bytes())
    assert contents[0] == contents[1]


# ---- refusals -----------------------------------------------------------------------------------------------------


def change(path, *keys, value):
    content = json.loads(path.read_text())
    place = content
    for key in keys[:-1]:
        place = place[key]
    if value is None:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("annotations", 1, "keypoints"), [0] * 15, r"the reference 1.png \(annotation 101\) has no points"),
        (("annotations", 1), None, "the reference 1.png has no points; label it or remove it"),
        (("annotations", 0, "category_id"), 3, "'category_id' is 3, expected the id of one of the 1 categories"),
        (("annotations", 0, "image_id"), 3, "'image_id' is 3, expected the id of one of the 2 images"),
        (("images", 1, "id"), 10, r"images\[1\]: id 10 stands there twice"),
        (("annotations", 1, "id"), 100, r"annotations\[1\]: id 100 stands there twice"),
        (("annotations", 0, "keypoints"), [1, 2, 2], "expected 5 times x, y, visibility"),
        (("annotations", 0, "keypoints"), [1, 2, 3] * 5, "a visibility of 0, 1 or 2"),
        (
            ("annotations", 0, "keypoints"),
            [70, 2, 2] * 5,
            r"keypoint top \(70, 2\) lies outside 0.png, which is 64 x 48 px",
        ),
        (("annotations", 0, "bbox"), [1, 2, 0, 5], "'bbox' is .* with an area"),
        (
            ("annotations", 0, "bbox"),
            [64, 2, 9, 5],
            r"the box of annotation 100 .* lies outside 0.png, which is 64 x 48",
        ),
        (
            ("annotations", 0, "segmentation"),
            [[-9, 1, -2, 1, -2, 9]],
            "the box of annotation 100 .* lies outside 0.png",
        ),
        (("categories", 0, "keypoints"), ["a", "a", "b", "c", "d"], "a list of names, each once"),
        (("categories", 0, "skeleton"), [[1, 9]], "counted from 1 to 5"),
        (("categories", 0, "flip_pairs"), [["left_eye", "tail"]], "'flip_pairs' holds .* no pair of keypoints"),
        (("images", 0, "file_name"), "gone.png", "gone.png: no such image, but"),
        (("images", 0, "width"), 63, "0.png is 64 x 48 px, but its labels are of 63 x 48"),
        (("categories",), None, "neither COCO's format"),
    ],
)
def test_labels_that_cannot_be_used(run, labelled, keys, value, message):
    change(labelled / "labelled" / "labels.json", *keys, value=value)
    status, out, err = run()
    assert status == 1 and out == "" and not (labelled / "out.json").exists()
    (line,) = err.strip().splitlines()[-1:]
    assert re.search(message, line), line


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (("--output", "out.txt"), 2, "--output out.txt: the name must end in .json"),
        (("--output", "images/../labelled/new.json"), 2, "lies among the references"),
        (("--output", "truth.json", "--truth", "truth.json"), 2, "truth.json is another file of this command"),
        (("--output", "real.json", "--references", "linked"), 2, "real.json is another file of this command"),
        (("--output", "truth.json/out.json"), 2, "truth.json is a file, so nothing can be written below it"),
        (
            ("--output", "points.json", "--references", "points_review.csv"),
            2,
            "whose list for review is points_review.csv",
        ),
        (("--category", "ghost"), 2, "--category 'ghost' has no reference in labelled/labels.json"),
        (("--category", "zebra"), 2, "--category 'zebra' is unknown; labelled/labels.json has bird, ghost"),
        (("TRANSFER.COMBINE", "mean"), 2, "TRANSFER.COMBINE must be one of confident, vote; got 'mean'"),
        (("TRANSFER.VISIBLE", "-0.5"), 2, "TRANSFER.VISIBLE must be 0..1, or -1; got -0.5"),
        (("TRANSFER.COMBNE", "vote"), 2, "did you mean TRANSFER.COMBINE"),
        (("TRANSFER.COMBINE",), 2, "settings come in pairs"),
        (("--timestep", "1000"), 2, "--timestep must be in 0..999; got 1000"),
        (("--references", "nowhere"), 1, "nowhere: no such file or folder"),
        (("--references", "images"), 1, "images: no label file there"),
        (("--images", "nowhere"), 1, "nowhere: no such folder"),
        (("--boxes", "other.json"), 1, "category 'cow' is unknown; labelled/labels.json has bird, ghost"),
        (("--boxes", "twice.json"), 1, "2.png is the file of two images"),
    ],
)
def test_flags_that_cannot_be_used(run, labelled, flags, status, message):
    ghost = [*coco(labelled / "labelled", [])["categories"], {"id": 9, "name": "ghost", "keypoints": ["eye"]}]
    change(labelled / "labelled" / "labels.json", "categories", value=ghost)
    write(labelled / "other.json", coco(labelled / "images", [2], category="cow", boxes=True, points=False))
    twice = coco(labelled / "images", [2, 3], boxes=True, points=False)
    twice["images"][1] |= {"file_name": "2.png", "width": 60, "height": 60}
    write(labelled / "twice.json", twice)
    write(labelled / "real.json", coco(labelled / "linked", [0]))
    (labelled / "linked" / "labels.json").symlink_to(labelled / "real.json")
    (labelled / "points_review.csv").touch()
    found, _, err = run(*flags)
    assert (found, message in err) == (status, True), err
    assert not (labelled / "out.json").exists() and len(json.loads((labelled / "truth.json").read_text())) == 3


def test_several_categories_are_told_by_the_folder(run, labelled):
    content = coco(labelled / "labelled", [0, 1])
    content["categories"].append({"id": 8, "name": "cat", "keypoints": ["ear"], "skeleton": []})
    content["annotations"][1] |= {"category_id": 8, "keypoints": [20, 20, 2]}
    write(labelled / "labelled" / "labels.json", content)
    status, _, err = run()
    assert status == 1 and "2.png: category unknown: its folder is none of the references' bird, cat" in err
    for name, number in (("bird", 2), ("cat", 3)):
        (labelled / "sorted" / name).mkdir(parents=True)
        (labelled / "images" / f"{number}.png").rename(labelled / "sorted" / name / f"{number}.png")
    assert run("--images", "sorted")[0] == 0
    found = json.loads((labelled / "out.json").read_text())
    assert [(i["file_name"], a["category_id"]) for i, a in zip(found["images"], found["annotations"], strict=True)] == [
        ("bird/2.png", 7),
        ("cat/3.png", 8),
    ]


# ---- scores -------------------------------------------------------------------------------------------------------


def test_pck_and_average_precision_by_hand(tmp_path):
    pytest.importorskip("pycocotools")
    content = coco(tmp_path, [2, 8], names=["a", "b"], boxes=True)
    for number, annotation in enumerate(content["annotations"]):
        bbox = [10 * number, 0, 40, 20]
        annotation |= {"id": number + 1, "keypoints": [20, 10, 2, 30, 10, 2], "bbox": bbox, "area": 900.0}
    content["annotations"][1]["keypoints"][3:] = [0, 0, 0]
    truth = read_labels(write(tmp_path / "truth.json", content))
    content["annotations"][0] |= {"keypoints": [24, 10, 2, 35, 10, 2], "score": 0.9}  # off by 4 and 5 px
    content["annotations"][1] |= {"keypoints": [20, 13, 2, 55, 10, 2], "score": 0.8}  # off by 3 px
    found = read_labels(write(tmp_path / "found.json", content))
    score = score_labels(found, truth, alphas=(0.075, 0.1, 0.125), oks_sigma=0.1)
    table = score["pck"].set_index(["category", "keypoint"])
    # the longer side is 40 px: radii 3, 4 and 5 px
    np.testing.assert_allclose(table.loc[("bird", "a"), ["@0.075", "@0.1", "@0.125"]].astype(float), [1 / 2, 1, 1])
    np.testing.assert_allclose(table.loc[("bird", "b"), ["@0.075", "@0.1", "@0.125"]].astype(float), [0, 0, 1])
    np.testing.assert_allclose(table.loc[("all", "all"), ["@0.075", "@0.1", "@0.125"]].astype(float), [1 / 3, 2 / 3, 1])
    assert table["points"].tolist() == [2, 1, 3, 3] and (score["objects"], score["missing"]) == (2, 0)
    # OKS: exp(-d^2 / (2 area (2 sigma)^2)) = exp(-d^2 / 72); 0.8 and 0.707 -> mean 0.754; exp(-9 / 72) = 0.882
    oks = [np.mean([np.exp(-16 / 72), np.exp(-25 / 72)]), np.exp(-9 / 72)]
    thresholds = np.linspace(0.5, 0.95, 10)
    # above the first's OKS only the second counts, found after a wrong one: precision 1/2 up to recall 1/2
    expected = [1.0 if t <= oks[0] else (51 / 101) / 2 if t <= oks[1] else 0.0 for t in thresholds]
    row = score["oks"].set_index("category").loc["bird"]
    assert row["AP"] == pytest.approx(np.mean(expected), abs=1e-6) and row["AP50"] == 1 and row["AP75"] == 1


def test_points_that_were_not_found_are_wrong_and_hidden_ones_are_judged(tmp_path):
    content = coco(tmp_path, [2], names=["a", "b"], boxes=True)
    truth = read_labels(write(tmp_path / "truth.json", content))
    (x, y, _, *_), annotation = content["annotations"][0]["keypoints"], content["annotations"][0]
    annotation |= {"keypoints": [0] * 6, "num_keypoints": 0, "found": [x, y, 0.2, 0, 0, 0], "score": 0.2}
    table = score_labels(read_labels(write(tmp_path / "found.json", content)), truth, (0.1,), 0.05)["pck"]
    assert table["@0.1"].tolist() == [1, 0, 0.5, 0.5] and table["found"].tolist() == [1, 0, 0.5, 0.5]


@pytest.mark.parametrize("points", [[(5, 7)], [(5, 7), (5, 20)], [(31, 23)]])
def test_labels_of_points_in_one_place_or_line_can_be_read_again(tmp_path, points):
    Image.new("RGB", (32, 24)).save(tmp_path / "a.png")
    category, image = Category(1, "cat", ("ear", "paw")), LabelledImage(1, "a.png", tmp_path / "a.png", (24, 32))
    rows = np.array([[*point, 2] for point in points] + [[0, 0, 0]] * (2 - len(points)), dtype=float)
    labels = Labels("labels", {1: category}, {1: image}, [LabelledObject(1, 1, 1, rows)])
    (tmp_path / "labels.json").write_text(json.dumps(to_coco(labels)))
    (thing,) = read_labels(tmp_path / "labels.json", tmp_path).objects
    assert thing.points.tolist() == rows.tolist() and (thing.find_box()[2:] > thing.find_box()[:2]).all()


def test_objects_are_told_apart_by_their_boxes(tmp_path):
    content = coco(tmp_path, [3, 3], names=["a"], boxes=True)
    content["images"] = content["images"][:1]
    for number, annotation in enumerate(content["annotations"], start=1):
        annotation |= {"id": number, "keypoints": [10 * number, 10, 2], "bbox": [30 * number, 0, 20, 20]}
    truth = read_labels(write(tmp_path / "truth.json", content))
    for annotation in content["annotations"]:
        annotation["id"] = 13 - annotation["id"]
    content["annotations"].reverse()
    found = read_labels(write(tmp_path / "found.json", content))
    score = score_labels(found, truth, (0.01,), 0.05)
    assert score["pck"]["@0.01"].tolist() == [1, 1, 1] and score["objects"] == 2
    found.objects.pop()
    score = score_labels(found, truth, (0.01,), 0.05)
    assert score["pck"]["@0.01"].tolist() == [0.5] * 3 and score["missing"] == 1


def test_the_command_compares_with_labels(run):
    status, out, _ = run("--truth", "truth.json", "--boxes", "truth.json")
    assert status == 0 and "4 objects" in out and "left_eye" in out and "@0.1" in out


def test_images_in_common_are_needed(tmp_path):
    one = read_labels(write(tmp_path / "a.json", coco(tmp_path, [0])))
    other = read_labels(write(tmp_path / "b.json", coco(tmp_path, [1])))
    with pytest.raises(DatasetError, match="no labelled image in common"):
        score_labels(one, other, (0.1,), 0.05)


def test_the_sigma_of_oks_is_a_key(run, labelled):
    pytest.importorskip("pycocotools")
    tables = [run("--truth", "truth.json", "TRANSFER.OKS_SIGMA", value)[1] for value in ("0.001", "10")]
    assert tables[0].split("category")[-1] != tables[1].split("category")[-1]
