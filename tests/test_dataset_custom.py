"""Own pairs: COCO keypoints and CSV lists say the same, a choice of pairs stays as it is, mistakes are named."""

import json

import numpy as np
import pytest

from dataset import DatasetError, MissingDataError, build_benchmark
from dataset.custom import divide, read_shown
from dataset.pair_dataset import PairDataset
from engine.result import read_scores
from tests.command import call
from tests.fixtures_dataset import (
    OWN_NAMES,
    SIZES,
    coco_content,
    object_box,
    object_points,
    write_csv,
    write_own_images,
)


def write_coco(root, name="annotations.json", content=None, **options):
    content = content or coco_content(write_own_images(root, **options))
    (root / name).write_text(json.dumps(content))
    return content


def open_split(root, split="test", **options):
    return build_benchmark("custom", root, split, index_root=root.parent / "index", **options)


def name_of(ref):
    return ref.path.rpartition("/images/")[2]


def describe(benchmark):
    """What the pairs say, without their numbers."""
    return {
        (name_of(pair.src), name_of(pair.trg)): (
            *(pair.category, pair.kps_ids, pair.src.size, pair.trg.size),
            *(array.round(3).tolist() for array in (pair.src_kps, pair.trg_kps, pair.src_bbox, pair.trg_bbox)),
        )
        for pair in benchmark
    }


def test_all_pairs_of_a_category_with_the_keypoints_that_both_show(tmp_path):
    images = write_own_images(tmp_path / "own")
    hidden = {("cat/0.png", 1), ("cat/1.png", 4), *(("bird/2.png", n) for n in range(5))}
    write_coco(tmp_path / "own", "test.json", coco_content(images, hidden))
    pairs = {(name_of(pair.src), name_of(pair.trg)): pair for pair in open_split(tmp_path / "own")}
    birds = {("bird/0.png", "bird/1.png"), ("bird/1.png", "bird/0.png")}  # bird 2 shows nothing
    assert set(pairs) == birds | {(f"cat/{i}.png", f"cat/{j}.png") for i in range(3) for j in range(3) if i != j}
    pair = pairs["cat/0.png", "cat/1.png"]
    assert pair.kps_ids == ("a", "c", "d") and pair.category == "cat"
    assert np.allclose(pair.src_kps, object_points(SIZES[0], 5)[[0, 2, 3]]) and pair.src.size == SIZES[0]
    assert np.allclose(pair.trg_kps, object_points(SIZES[1], 5)[[0, 2, 3]])
    assert np.allclose(pair.trg_bbox, object_box(SIZES[1]))


def test_one_file_for_all_is_divided_by_image_and_category(tmp_path):
    write_coco(tmp_path / "own", count=10)
    splits = {split: open_split(tmp_path / "own", split) for split in ("trn", "val", "test")}
    names = {split: {ref.path for ref in benchmark.images()} for split, benchmark in splits.items()}
    assert {split: len(found) for split, found in names.items()} == {"trn": 12, "val": 4, "test": 4}
    assert len(set.union(*names.values())) == 20
    assert {split: len(benchmark) for split, benchmark in splits.items()} == {"trn": 60, "val": 4, "test": 4}


def test_a_photo_more_moves_few_others_to_another_split(tmp_path):
    write_coco(tmp_path, count=20, categories=("cat",))
    objects = read_shown(tmp_path / "annotations.json")
    for split in ("trn", "val", "test"):
        assert len(divide(objects, split) ^ divide(objects[:-1], split)) <= 3


def test_some_pairs_are_always_the_same_and_part_of_more(tmp_path):
    write_coco(tmp_path / "own", "trn.json", count=8)
    few, more, every = (describe(open_split(tmp_path / "own", "trn", pairs_per_category=n)) for n in (3, 9, 0))
    assert len(few) == 6 and len(more) == 18 and len(every) == 112
    assert set(few) < set(more) < set(every) and all(every[key] == more[key] for key in more)
    assert len({src for src, _ in few}) > 2  # not the first ones
    assert list(few) == list(describe(open_split(tmp_path / "own", "trn", pairs_per_category=3)))  # from the index


def test_a_listed_benchmark_is_thinned_out_as_well(tmp_path):
    from tests.fixtures_dataset import tiny_spair

    root = tiny_spair(tmp_path)
    ids = [[pair.pair_id for pair in build_benchmark("spair", root, "trn", pairs_per_category=n)] for n in (1, 2, 0)]
    assert [len(found) for found in ids] == [2, 4, 6] and set(ids[0]) < set(ids[1]) < set(ids[2])


def long_rows(pairs, boxes=True):
    header = ["source", "target", "category", *BOX_COLUMNS * boxes, "keypoint", "src_x", "src_y", "trg_x", "trg_y"]
    rows = []
    for (src, trg), (category, names, _, _, src_kps, trg_kps, *found) in pairs.items():
        cells = [src, trg, category, *(np.ravel(found).tolist() if boxes else ())]
        rows += [[*cells, name, *a, *b] for name, a, b in zip(names, src_kps, trg_kps, strict=True)]
    return header, rows


BOX_COLUMNS = [f"{side}_{corner}" for side in ("src", "trg") for corner in ("x1", "y1", "x2", "y2")]


def test_the_lists_say_what_the_coco_file_says(tmp_path):
    images = write_own_images(tmp_path / "own")
    write_coco(tmp_path / "own", "test.json", coco_content(images, {("cat/0.png", 1)}))
    expected = describe(open_split(tmp_path / "own"))
    (tmp_path / "own" / "test.json").unlink()

    write_csv(tmp_path / "own" / "test_pairs.csv", *long_rows(expected))
    assert describe(open_split(tmp_path / "own")) == expected

    header, rows = long_rows(expected)
    pairs = dict.fromkeys(tuple(row[:11]) for row in rows)
    write_csv(tmp_path / "own" / "test_pairs.csv", header[:11], list(pairs))
    points = [
        [image, *row]
        for rows in images.values()
        for image, _, kps in rows
        for row in zip(OWN_NAMES, *kps.T, strict=True)
    ]
    points = [row if (row[0], row[1]) != ("cat/0.png", "b") else [*row[:2], "", ""] for row in points]
    write_csv(tmp_path / "own" / "keypoints.csv", ["image", "keypoint", "x", "y"], points)
    assert describe(open_split(tmp_path / "own")) == expected


@pytest.mark.parametrize("rule", ["bbox", "image", "kps"])
def test_threshold_rule(tmp_path, rule):
    write_coco(tmp_path / "own", "test.json")
    data = PairDataset(open_split(tmp_path / "own", threshold_rule=rule), (48, 48))
    for pair, item in zip(data.benchmark, data, strict=True):
        x1, y1, x2, y2 = pair.trg_bbox
        expected = {"bbox": max(x2 - x1, y2 - y1), "image": max(pair.trg.size)}
        expected["kps"] = np.ptp(pair.trg_kps, axis=0).max()
        assert item["pck_threshold_orig"] == pytest.approx(expected[rule])


def test_without_boxes(tmp_path):
    content = coco_content(write_own_images(tmp_path / "own"))
    for annotation in content["annotations"]:
        del annotation["bbox"]
    write_coco(tmp_path / "own", "test.json", content)
    with pytest.raises(DatasetError, match=r"annotation \d+: no box.*DATASET.THRESHOLD image or kps"):
        open_split(tmp_path / "own")
    pair = open_split(tmp_path / "own", threshold_rule="image")[0]
    assert pair.src_bbox.tolist() == [*pair.src_kps.min(axis=0), *pair.src_kps.max(axis=0)]


def test_left_and_right_of_named_keypoints(tmp_path):
    content = coco_content(write_own_images(tmp_path / "own"), {("cat/1.png", 0)})
    for category in content["categories"]:
        category["keypoints"] = ["nose", "left_eye", "right_eye", "left_foot", "right_foot"]
    write_coco(tmp_path / "own", "test.json", content)
    benchmark = open_split(tmp_path / "own")
    assert benchmark.find_symmetry("cat").permutation == (0, 2, 1, 4, 3)
    item = next(
        item
        for pair, item in zip(benchmark, PairDataset(benchmark, 48), strict=True)
        if name_of(pair.src) == "cat/0.png" and name_of(pair.trg) == "cat/1.png"
    )
    assert item["kps_ids"].tolist() == [1, 2, 3, 4, -1] and item["kps_partner"].tolist() == [2, 1, 4, 3, -1]
    assert item["kps_aware"].tolist() == [True] * 4 + [False] and item["src_seen_ids"].tolist() == [0, 1, 2, 3, 4]


def test_images_with_several_objects_of_a_category_are_left_out_and_said(tmp_path, caplog):
    content = coco_content(write_own_images(tmp_path / "own"))
    content["annotations"].append(content["annotations"][0] | {"id": 99})
    write_coco(tmp_path / "own", "test.json", content)
    assert len([pair for pair in open_split(tmp_path / "own") if pair.category == "bird"]) == 2
    assert "1 of 6 images are left out" in caplog.text
    content["annotations"][-1] |= {"id": 99, "iscrowd": 1}
    write_coco(tmp_path / "own", "test.json", content)
    assert len([pair for pair in open_split(tmp_path / "own") if pair.category == "bird"]) == 6


def test_an_image_may_show_two_categories(tmp_path):
    content = coco_content(write_own_images(tmp_path / "own"))
    content["annotations"].append(content["annotations"][0] | {"id": 99, "category_id": 2})
    write_coco(tmp_path / "own", "test.json", content)
    benchmark = open_split(tmp_path / "own")
    assert len([pair for pair in benchmark if pair.category == "cat"]) == 12
    assert {ref.category for ref in benchmark.images() if name_of(ref) == "bird/0.png"} <= {"bird", "cat"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][1].pop("image_id"), r"test.json, annotations\[1\]: 'image_id' is missing"),
        (lambda c: c["annotations"][1].update(image_id=77), r"annotations\[1\]: 'image_id' is 77, expected the id of"),
        (lambda c: c["annotations"][1].update(category_id=[]), r"annotations\[1\]: 'category_id' is \[\]"),
        (lambda c: c["annotations"][1].update(id=1), r"annotations\[1\]: id 1 stands there twice"),
        (
            lambda c: c["annotations"][1]["keypoints"].pop(),
            r"annotations\[1\]: 'keypoints' is .* expected 5 times x, y",
        ),
        (lambda c: c["annotations"][1]["keypoints"].__setitem__(2, 3), r"a visibility of 0, 1 or 2"),
        (
            lambda c: c["annotations"][1]["keypoints"].__setitem__(0, 900),
            r"keypoint a .900, .* lies outside bird/1.png",
        ),
        (lambda c: c["categories"][0].update(keypoints=["a"] * 5), r"categories\[0\]: 'keypoints' .* each once"),
        (lambda c: c["categories"][0].update(name="a/b"), r"category 'a/b' must be a word"),
        (lambda c: c["categories"][0].update(name="all"), r"a category is called 'all'"),
        (lambda c: c["images"][1].update(file_name="../x.png"), r"image 2: 'file_name' is '../x.png'"),
        (lambda c: c["images"][1].update(file_name="bird/0.png"), r"bird/0.png is the file of images 1 and 2"),
        (
            lambda c: c["images"][1].update(width=64),
            r"annotation 2: bird/1.png has the size .* annotation says \(72, 64\)",
        ),
        (lambda c: c["images"][1].update(file_name="bird/7.png"), r"7.png: no such image \(.*annotation 2\)"),
        (lambda c: c.pop("categories"), r"test.json: neither COCO's format"),
        (lambda c: c.update(annotations=[]), r"test.json: split 'test' has no pair"),
    ],
)
def test_mistakes_in_a_coco_file_are_named(tmp_path, change, message):
    content = coco_content(write_own_images(tmp_path / "own"))
    change(content)
    write_coco(tmp_path / "own", "test.json", content)
    with pytest.raises((DatasetError, MissingDataError), match=message):
        open_split(tmp_path / "own")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("keypoint,", "name,", r"unknown column: 'name'"),
        (",trg_y2", "", r"line 2: 16 cells, but the header has 15 columns"),
        (",b,", ",a,", r"line 3: keypoint a of this pair stands there already"),
        (",a,54.0", ",a,many", r"line 2: 'src_x' is 'many', expected a number"),
        ("bird/0.png,bird/1.png,bird,8", "bird/0.png,bird/1.png,bird,9", r"line 3: another box than in .*line 2"),
        (",bird,", ", ,", r"line 2: 'category' is ' ', expected a name"),
    ],
)
def test_mistakes_in_a_list_are_named(tmp_path, old, new, message):
    write_coco(tmp_path / "own", "test.json")
    pairs = describe(open_split(tmp_path / "own"))
    (tmp_path / "own" / "test.json").unlink()
    path = tmp_path / "own" / "test_pairs.csv"
    write_csv(path, *long_rows(pairs))
    content = path.read_text().replace("\r\n", "\n")
    assert old in content
    path.write_text(content.replace(old, new, 1))
    with pytest.raises(DatasetError, match=message):
        open_split(tmp_path / "own")


def test_files_that_do_not_go_together(tmp_path):
    root = tmp_path / "own"
    with pytest.raises(MissingDataError, match=r"own: no such folder(?s:.*)docs/own_data.md"):
        open_split(root)
    images = write_own_images(root)
    with pytest.raises(MissingDataError, match=r"test.json: no such file(?s:.*)annotations.json"):
        open_split(root)
    write_csv(root / "test_pairs.csv", ["source", "target", "category"], [["bird/0.png", "bird/1.png", "bird"]])
    with pytest.raises(DatasetError, match=r"keypoints belong into keypoints.csv or into the columns"):
        open_split(root)
    header = ["source", "target", "category", "keypoint", "src_x"]
    write_csv(root / "test_pairs.csv", header, [["bird/0.png", "bird/1.png", "bird", "a", 3]])
    with pytest.raises(DatasetError, match=r"src_x, src_y, trg_x, trg_y go together; the header has only keypoint"):
        open_split(root)
    write_coco(root, "annotations.json", coco_content(images))
    with pytest.raises(DatasetError, match=r"holds test_pairs.csv and annotations.json: which one is meant"):
        open_split(root)


def test_trained_tested_and_looked_at(world, tmp_path, capsys):
    """A folder anywhere, as train.py, test.py and the page of results take it."""
    write_coco(tmp_path / "photos", count=10)
    own = ("DATASET.NAME", "custom", "DATASET.FOLDER", tmp_path / "photos", "DATASET.PAIRS", "5")
    run = ("--config_file", "config/spair/base.yaml", *world.opts(tmp_path / "out", *map(str, own)))
    kind = ("PROMPT.KIND", "Class", "PROMPT.LENGTH", "5", "TRAIN.MAX_STEPS", "1")
    assert call("train.py", *run, *kind) == 0
    assert "10 pairs" in capsys.readouterr().out  # 5 of each of two categories
    assert call("test.py", *run, "PROMPT.TYPE", "Class_custom_tiny_TokenEmbeds5", "DATASET.THRESHOLD", "kps") == 0
    assert "4 pairs" in capsys.readouterr().out
    (path,) = (tmp_path / "out").rglob("custom_result_*_pairs.csv")
    scores = read_scores(path)
    assert set(scores["category"]) == {"bird", "cat"} and len(scores) == 4

    from app.viewer import build_pages, find_results

    (page,) = build_pages(find_results([str(tmp_path / "out")]), ["nn"])
    assert page.name == "custom_test" and len(page.images) == 4 and not page.missing
