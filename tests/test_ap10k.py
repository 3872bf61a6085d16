"""AP-10K: how splits and pairs are made, and how the benchmark is read, from own lists and from the release's files."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from dataset import BENCHMARKS, DatasetError, MissingDataError, build_benchmark
from dataset import prepare as p
from dataset.ap10k_split import (
    CROWD,
    SOURCES,
    Kind,
    build_pairs,
    draw,
    list_across_families,
    list_across_species,
    list_within,
)
from model.backbone.text import PromptEncoder
from tests.command import call

SPECIES = {1: ("Felidae", "cat"), 2: ("Felidae", "king cheetah"), 3: ("Canidae", "wolf")}
COUNTS = {1: 60, 2: 12, 3: 55}  # images, of which 10 more cats are not usable


def keypoints(number, shown=17):
    """Of image `number`: point k at (number + k, 2k), visible below `shown`."""
    return [value for k in range(17) for value in ((number % 40 + k, 2 * k, 2) if k < shown else (0, 0, 0))]


def write_raw(folder):
    """AP-10K's own layout: 127 annotations over three files, ids mixed over them; image 5 has two animals."""
    rows, number = [], 0
    for kind, count in COUNTS.items():
        for i in range(count):
            number += 1
            shown = 2 if kind == 1 and i < 5 else 17
            rows.append((number, kind, shown))
    files = {name: {"images": [], "annotations": [], "categories": []} for name in SOURCES}
    for place, (number, kind, shown) in enumerate(rows):
        content = files[SOURCES[place % 3]]
        file_name = f"{number:012d}.jpg"
        content["images"].append({"id": number, "file_name": file_name, "width": 64, "height": 48})
        annotation = {"image_id": number, "category_id": kind, "bbox": [4, 6, 40, 30]}
        annotation |= {"id": 1000 + number, "keypoints": keypoints(number, shown), "num_keypoints": shown}
        content["annotations"].append(annotation)
        if number == 8:
            content["annotations"].append(annotation | {"id": 5000, "bbox": [0, 0, 5, 5]})
        (folder / "data").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48), (number, 90, 30)).save(folder / "data" / file_name)
    for name, content in files.items():
        categories = [{"id": i, "name": name, "supercategory": family} for i, (family, name) in SPECIES.items()]
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / name).write_text(json.dumps(content | {"categories": categories}))
    (folder / CROWD).write_text("6\n7\n8\n9\n10\n")


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ap10k") / "ap-10k"
    write_raw(folder)
    return folder, build_pairs(folder)


def test_splits_of_a_species(raw):
    folder, _ = raw
    listed = {
        split: (folder / "ImageAnnotation/Felidae/cat" / f"{split}_filtered.txt").read_text().split()
        for split in ("train", "val", "test")
    }
    # of 60 cats five show two points and five are crowds: 11 ... 60 remain, the last 30 for testing, 20 before them
    ids = {split: [int(name[:12]) for name in names] for split, names in listed.items()}
    assert ids == {"train": [], "val": list(range(11, 31)), "test": list(range(31, 61))}
    wolves = (folder / "ImageAnnotation/Canidae/wolf" / "train_filtered.txt").read_text().split()
    assert [int(name[:12]) for name in wolves] == [73, 74, 75, 76, 77]
    small = folder / "ImageAnnotation/Felidae/king cheetah"
    assert len((small / "test_filtered.txt").read_text().split()) == 12 and not (small / "val_filtered.txt").read_text()


def test_annotations_are_merged_and_pictures_laid_into_species(raw):
    folder, _ = raw
    record = json.loads((folder / "ImageAnnotation/Felidae/cat/000000000008.json").read_text())
    assert record["id"] == 8 and record["bbox"] == [4, 6, 40, 30]  # the first annotation; the image's own id
    assert record["is_crowd"] == 1 and record["supercategory"] == "Felidae" and record["width"] == 64
    assert (folder / "JPEGImages/Canidae/wolf/000000000073.jpg").is_file()


def test_numbers_of_pairs(raw):
    _, counts = raw
    assert counts == {
        "trn": 10,  # five wolves
        "val": 190 + 190,
        "val_cross_species": 0,  # no cheetahs
        "val_cross_family": 20,
        "test": 435 + 66 + 435,
        "test_cross_species": 360,  # of 30 cats and 12 cheetahs
        "test_cross_family": 30,
    }


def test_pairs_are_the_same_again_and_lists_that_are_there_stay(raw, tmp_path):
    folder, _ = raw
    write_raw(tmp_path)
    (tmp_path / "Layout").mkdir()
    (tmp_path / "Layout/trn.txt").write_text("000000000074-000000000073:wolf\n")
    assert "trn" not in build_pairs(tmp_path)
    for path in sorted((folder / "Layout").glob("*.txt")):
        if path.stem != "trn":
            assert (tmp_path / "Layout" / path.name).read_text() == path.read_text()
    assert len(build_benchmark("ap10k", tmp_path, "trn")) == 1


def test_drawn_pairs_share_three_points():
    visible = np.zeros((4, 17), bool)
    visible[0, :4] = visible[1, :3] = visible[2, 1:4] = visible[3, 4:] = True
    kind = Kind("F", "cat", list("abcd"), visible)
    assert list(draw([(kind, kind)], None, np.random.default_rng(0), "cat")) == ["a-b:cat", "a-c:cat"]
    assert len(list(draw([(kind, kind)], 1, np.random.default_rng(0), "cat"))) == 1
    many = Kind("F", "cat", [f"{i:03d}" for i in range(172)], np.ones((172, 17), bool))
    lines = list(list_within([many], "trn"))
    assert len(lines) == 50 * 122 == len(set(lines)) and lines == sorted(lines)


def test_caps_are_of_a_family_and_of_two_families():
    """Three species of one family, one each of two others; 30 images of each are for testing, 20 for validation."""
    visible = np.ones((60, 17), bool)
    names = [("F", "a"), ("F", "b"), ("F", "c"), ("G", "d"), ("H", "e")]
    kinds = [Kind(family, name, [f"{name}{i:02d}" for i in range(60)], visible) for family, name in names]
    for split, within, between in (("val", 400, 20), ("test", 900, 30)):
        species = [re.fullmatch(r"(.)..-(.)..:F", line).groups() for line in list_across_species(kinds, split)]
        assert len(species) == within and set(species) == {("a", "b"), ("a", "c"), ("b", "c")}  # pooled
        families = [re.fullmatch(r"(.)..-(.)..:all", line).groups() for line in list_across_families(kinds, split)]
        pairs = {"".join("F" if name in "abc" else name for name in pair) for pair in families}
        assert len(families) == 3 * between and pairs == {"Fd", "Fe", "de"}


@pytest.mark.parametrize(
    "split, categories, pairs",
    [
        ("test", ("cat", "king cheetah", "wolf"), 936),
        ("test_cross_species", ("Felidae",), 360),
        ("test_cross_family", ("cross-family",), 30),
    ],
)
def test_settings_are_splits(raw, split, categories, pairs):
    benchmark = build_benchmark("ap10k", raw[0], split)
    assert benchmark.categories == categories and len(benchmark) == pairs
    record = benchmark[0]
    assert record.category in categories and record.src.category in ("cat", "king cheetah", "wolf")
    assert record.trg_bbox.tolist() == [4, 6, 44, 36] and record.src.size == (48, 64)
    assert record.kps_ids == tuple(map(str, range(17)))
    number = int(record.src.identifier[-12:])
    assert record.src_kps.tolist() == [[number % 40 + k, 2 * k] for k in range(17)]
    assert benchmark.find_symmetry(record.category).permutation[5] == 8


@pytest.mark.parametrize("split", ["test", "test_cross_species", "test_cross_family"])
def test_a_prompt_names_the_species_of_an_image_in_every_setting(raw, world, tmp_path, split):
    data = {"DATASET.NAME": "ap10k", "DATASET.ROOT": raw[0].parent, "DATASET.PAIRS": 2, "TEST.SPLIT": split}
    settings = [word for key, value in data.items() for word in (key, value)]
    assert call("test", *world.opts(tmp_path / "out", *settings, "PROMPT.TYPE", "text")) == 0


@pytest.mark.parametrize("split", ["test", "test_cross_species", "test_cross_family"])
def test_the_word_that_is_looked_for_is_the_target_s_species(raw, world, tmp_path, monkeypatch, split):
    asked, usual = [], PromptEncoder.encode_text
    monkeypatch.setattr(PromptEncoder, "encode_text", lambda self, texts: asked.extend(texts) or usual(self, texts))
    data = {"DATASET.NAME": "ap10k", "DATASET.ROOT": raw[0].parent, "DATASET.PAIRS": 2, "TEST.SPLIT": split}
    method = {"METHOD.NAME": "word_attention", "LDM.LAYERS": "['up1.0']", "TEST.ENSEMBLE": 1}
    settings = [word for key, value in (data | method).items() for word in (key, value)]
    assert call("test", *world.opts(tmp_path / "out", *settings)) == 0
    assert asked and set(asked) <= {f"a photo of a {name}" for name in ("cat", "king cheetah", "wolf")}


def test_release_pair_files_are_rooted_here(raw, tmp_path):
    root = tmp_path / "ap-10k"
    root.mkdir()
    for name in ("ImageAnnotation", "JPEGImages"):
        (root / name).symlink_to(raw[0] / name)
    own = {split: list(build_benchmark("ap10k", raw[0], split)) for split in ("test", "test_cross_family")}
    for split, records in own.items():
        folder = root / "PairAnnotation" / split
        folder.mkdir(parents=True)
        for record in records:
            paths = [
                f"data/ap-10k/ImageAnnotation/{ref.path.split('JPEGImages/')[1][:-4]}.json"
                for ref in (record.src, record.trg)
            ]
            name = record.pair_id.replace(":", "_" if split == "test" else ":")  # both kinds of disks
            content = dict(zip(("src_json_path", "trg_json_path"), paths, strict=True))
            (folder / f"{name}.json").write_text(json.dumps(content))
        found = build_benchmark("ap10k", root, split)
        assert sorted((r.pair_id, r.category) for r in found) == sorted((r.pair_id, r.category) for r in records)


def copy_of(raw, tmp_path):
    folder = tmp_path / "ap-10k"
    write_raw(folder)
    build_pairs(folder)
    return folder


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_what_is_wrong_is_named(raw, tmp_path):
    folder = copy_of(raw, tmp_path)
    wolf = folder / "ImageAnnotation/Canidae/wolf/000000000127.json"
    change(wolf, keypoints=keypoints(1)[:48])
    with pytest.raises(DatasetError, match=r"000000000127.json: 'keypoints' .*each of the 17 keypoints"):
        build_benchmark("ap10k", folder, "test")
    values = keypoints(1)
    values[2], values[5] = 1, 0
    change(wolf, keypoints=values)  # v = 1 counts in full, v = 0 not at all
    record = next(r for r in build_benchmark("ap10k", folder, "test") if r.trg.path.endswith("127.jpg"))
    assert record.kps_ids[:2] == ("0", "2") and record.trg_kps[0].tolist() == [1, 0]
    wolf.unlink()
    with pytest.raises(MissingDataError, match=r"(?s)test.txt, line \d+: no file .*000000000127.json.*prepare_data"):
        build_benchmark("ap10k", folder, "test")
    with pytest.raises(DatasetError, match="trn.txt: split 'trn' has no pair of category 'king cheetah'"):
        build_benchmark("ap10k", folder, "trn", "king cheetah")
    with pytest.raises(ValueError, match="unknown split of ap10k: 'cross'"):
        build_benchmark("ap10k", folder, "cross")
    (folder / "Layout/val.txt").write_text("12-13:cat\n")
    with pytest.raises(DatasetError, match="val.txt, line 1: '12-13:cat' is not of the form"):
        build_benchmark("ap10k", folder, "val")


def test_one_animal_of_two_is_named(raw, tmp_path):
    folder = copy_of(raw, tmp_path)
    (folder / "Layout/val.txt").unlink()
    path = folder / "PairAnnotation/val/000000000011-000000000012:cat.json"
    path.parent.mkdir(parents=True)
    source = "data/ap-10k/ImageAnnotation/Felidae/cat/000000000011.json"
    path.write_text(json.dumps({"src_json_path": source}))
    with pytest.raises(DatasetError, match="000000000011-000000000012:cat.json: 'trg_json_path' is missing"):
        build_benchmark("ap10k", folder, "val")
    path.write_text(json.dumps({"src_json_path": source, "trg_json_path": source.replace("11.json", "99.json")}))
    with pytest.raises(MissingDataError, match=r"000000000099.json: no such file \(.*12:cat.json\)"):
        build_benchmark("ap10k", folder, "val")


def test_raw_files_are_checked(tmp_path):
    write_raw(tmp_path)
    (tmp_path / "data/000000000060.jpg").unlink()
    with pytest.raises(MissingDataError, match="000000000060.jpg: no such file"):
        build_pairs(tmp_path)
    (tmp_path / CROWD).write_text("6\ntwelve\n")
    with pytest.raises(DatasetError, match=f"{CROWD}: 'twelve' is no id"):
        build_pairs(tmp_path)
    path = tmp_path / "annotations" / SOURCES[1]
    content = json.loads(path.read_text())
    content["annotations"][0]["category_id"] = 77
    path.write_text(json.dumps(content))
    (tmp_path / CROWD).unlink()
    with pytest.raises(DatasetError, match=rf"{re.escape(SOURCES[1])}, annotations\[0\]: 'category_id' is 77"):
        build_pairs(tmp_path)


def test_prepared_data_are_checked_against_the_stated_numbers(raw, monkeypatch, capsys):
    problems = p.find_problems("ap10k", raw[0], {"images": 127})
    assert "10 trn pairs are far from the 261,000 that the authors state" in problems
    monkeypatch.setitem(p.STATED, "ap10k", {"trn": 10, "val": 420, "test": 1326})
    problems = p.find_problems("ap10k", raw[0], {"images": 128})
    assert [line.split(": ")[-1][:40] for line in problems] == [
        "split 'val_cross_species' has no pair of",
        "JPEGImages has 127 images, expected 128",
    ]
    assert "test: 1,326 pairs over all settings" in capsys.readouterr().out


def test_every_benchmark_can_be_prepared():
    assert set(p.PARTS) == set(p.EXPECTED) <= set(BENCHMARKS)


def test_images_of_few_pairs_are_held_at_a_time(raw, monkeypatch):
    """One category of a setting may have all images of the data set: their maps must not be in memory at once."""
    from engine import evaluate

    monkeypatch.setattr(evaluate, "HELD", 4)
    for split in ("test_cross_family", "test"):
        benchmark = build_benchmark("ap10k", raw[0], split)
        groups = list(evaluate.group_positions(benchmark, range(len(benchmark))))
        assert [position for group in groups for position in group] == list(range(len(benchmark)))
        for group in groups:
            records = [benchmark[position] for position in group]
            assert len({record.category for record in records}) == 1
            assert len({ref.identifier for record in records for ref in (record.src, record.trg)}) <= 4
