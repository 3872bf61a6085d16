"""What the three readers make of small real files, and what they say about wrong ones."""

import json

import numpy as np
import pytest
from scipy.io import savemat

from dataset import BENCHMARKS, DatasetError, MissingDataError, build_benchmark
from dataset.pfpascal import PASCAL_CLASSES
from dataset.record import mirror_bbox, mirror_kps, threshold
from tests.fixtures_dataset import (
    SIZES,
    draw_image,
    object_box,
    object_points,
    tiny_pfpascal,
    tiny_pfwillow,
    tiny_spair,
    willow_header,
    write_csv,
    write_mat,
)


def edit_json(path, **changes):
    data = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


@pytest.fixture
def spair(tmp_path):
    return tiny_spair(tmp_path)


@pytest.fixture
def pfpascal(tmp_path):
    return tiny_pfpascal(tmp_path)


@pytest.fixture
def pfwillow(tmp_path):
    return tiny_pfwillow(tmp_path)


# Known answers


def test_spair_record(spair):
    benchmark = build_benchmark("spair", spair, "trn")
    assert (benchmark.name, benchmark.split, len(benchmark)) == ("spair", "trn", 6)
    assert (benchmark.categories, benchmark.threshold_rule, benchmark.max_kps) == (
        ("bird", "cat"),
        "bbox",
        30,
    )
    record = benchmark[1]
    assert record.pair_id == "000002-2008_000001-2008_000002:bird"
    assert record.category == record.src.category == "bird"
    assert (record.src.identifier, record.trg.identifier) == ("bird-2008_000001", "bird-2008_000002")
    assert record.src.path == str(spair / "JPEGImages/bird/2008_000001.jpg")
    assert (record.src.size, record.trg.size, record.src.flip) == (SIZES[1], SIZES[2], False)
    np.testing.assert_array_equal(record.src_kps, object_points(SIZES[1], 5))
    np.testing.assert_array_equal(record.trg_kps, object_points(SIZES[2], 5))
    np.testing.assert_array_equal(record.trg_bbox, object_box(SIZES[2]))
    assert record.src_kps.dtype == record.trg_bbox.dtype == np.float32
    assert record.kps_ids == ("0", "2", "4", "6", "8")
    assert record.flags == {
        "mirror": 0,
        "viewpoint_variation": 1,
        "scale_variation": 0,
        "truncation": 2,
        "occlusion": 3,
    }


def test_sequence_and_images(spair):
    benchmark = build_benchmark("spair", spair, "trn")
    assert [record.pair_id for record in benchmark][-1] == benchmark[-1].pair_id
    with pytest.raises(IndexError):
        benchmark[6]
    names = [f"{category}-2008_00000{image}" for category in ("bird", "cat") for image in (0, 1, 2)]
    assert [ref.identifier for ref in benchmark.images()] == names
    test = build_benchmark("spair", spair, "test", "cat")
    assert [ref.identifier for ref in test.images()] == [f"cat-2008_00000{image}" for image in (1, 0, 2)]


def test_flags_may_be_absent(spair):
    path = next((spair / "PairAnnotation/val").iterdir())
    edit_json(path, mirror=None, truncation=None)
    record = next(r for r in build_benchmark("spair", spair, "val") if r.pair_id == path.stem)
    assert set(record.flags) == {"viewpoint_variation", "scale_variation", "occlusion"}


def test_records_do_not_share_memory(spair):
    benchmark = build_benchmark("spair", spair, "val")
    benchmark[0].src_kps[:] = -1
    assert (benchmark[0].src_kps >= 0).all()


def test_pfpascal_drops_points_absent_in_either_image(pfpascal):
    record = build_benchmark("pfpascal", pfpascal, "test")[0]  # images 2 and 0 lack points 2 and 0
    assert record.kps_ids == ("1", "3", "4", "5")
    np.testing.assert_array_equal(record.src_kps, object_points(SIZES[2], 6)[[1, 3, 4, 5]])
    np.testing.assert_array_equal(record.trg_kps, object_points(SIZES[0], 6)[[1, 3, 4, 5]])
    assert record.src.identifier == "cat-2009_000002-0"
    assert (record.src.size, record.flags) == (SIZES[2], {})


def test_pfpascal_flip_mirrors_points_and_boxes(pfpascal):
    plain, flipped = list(build_benchmark("pfpascal", pfpascal, "trn"))[:2]
    width = SIZES[0][1]
    assert (plain.src.identifier, flipped.src.identifier) == ("cat-2009_000000-0", "cat-2009_000000-1")
    assert (plain.src.path, plain.src.flip) == (flipped.src.path, False)
    assert flipped.src.flip and flipped.trg.flip
    np.testing.assert_array_equal(flipped.src_kps[:, 0], width - 1 - plain.src_kps[:, 0])
    np.testing.assert_array_equal(flipped.src_kps[:, 1], plain.src_kps[:, 1])
    x1, y1, x2, y2 = plain.src_bbox
    np.testing.assert_array_equal(flipped.src_bbox, [width - 1 - x2, y1, width - 1 - x1, y2])
    np.testing.assert_array_equal(flipped.trg_kps[:, 0], SIZES[1][1] - 1 - plain.trg_kps[:, 0])


def test_pfpascal_flips_only_in_training(pfpascal):
    (pfpascal / "trn_pairs.csv").rename(pfpascal / "test_pairs.csv")
    assert not any(r.src.flip or r.trg.flip for r in build_benchmark("pfpascal", pfpascal, "test"))


def test_pfpascal_pair_list_without_flip_column(pfpascal):
    (pfpascal / "val_pairs.csv").rename(pfpascal / "trn_pairs.csv")
    benchmark = build_benchmark("pfpascal", pfpascal, "trn")
    assert len(benchmark) == 2 and not benchmark[0].src.flip
    assert benchmark.categories == PASCAL_CLASSES and len(PASCAL_CLASSES) == 20
    assert list(PASCAL_CLASSES) == sorted(PASCAL_CLASSES)


def test_pfwillow_record(pfwillow):
    benchmark = build_benchmark("pfwillow", pfwillow, "test")
    assert (len(benchmark), benchmark.categories) == (4, ("car(G)", "duck(S)"))
    record = benchmark[3]
    kps = object_points(SIZES[2], 10)
    assert (record.category, record.src.identifier) == ("duck(S)", "duck(S)-img_001")
    np.testing.assert_array_equal(record.trg_kps, kps)
    np.testing.assert_array_equal(record.trg_bbox, [*kps.min(0), *kps.max(0)])
    assert record.kps_ids == tuple(str(n) for n in range(1, 11))


def test_pfwillow_empty_cell_is_an_absent_point(pfwillow):
    path = pfwillow / "test_pairs.csv"
    header, first, *rest = path.read_text().splitlines()
    cells = first.split(",")
    cells[header.split(",").index("YB3")] = ""
    path.write_text("\n".join([header, ",".join(cells), *rest]))
    record = build_benchmark("pfwillow", pfwillow, "test")[0]
    assert record.kps_ids == ("1", "2", *(str(n) for n in range(4, 11)))
    np.testing.assert_array_equal(record.src_kps, np.delete(object_points(SIZES[0], 10), 2, axis=0))


def test_mirroring_twice_changes_nothing():
    kps, box = np.array([[0.0, 3.0], [9.0, 4.0]]), np.array([1.0, 2.0, 7.0, 5.0])
    np.testing.assert_array_equal(mirror_kps(kps, 10), [[9, 3], [0, 4]])
    np.testing.assert_array_equal(mirror_bbox(box, 10), [2, 2, 8, 5])
    np.testing.assert_array_equal(mirror_bbox(mirror_bbox(box, 10), 10), box)


def test_threshold_rules():
    box, kps = np.array([10, 20, 40, 30]), np.array([[1, 2], [5, 9], [3, 4]])
    assert threshold("bbox", box, kps, (100, 80)) == 30
    assert threshold("image", box, kps, (100, 80)) == 100
    assert threshold("kps", box, kps, (100, 80)) == 7
    with pytest.raises(ValueError, match="known are 'bbox', 'image', 'kps'"):
        threshold("box", box, kps, (100, 80))


# Selection


def test_category_by_equality(tmp_path):
    root = tiny_spair(tmp_path, ("cat", "cattle"))
    assert len(build_benchmark("spair", root, "trn")) == 6
    for category in ("cat", "cattle"):
        benchmark = build_benchmark("spair", root, "trn", category)
        assert {record.category for record in benchmark} == {category} and len(benchmark) == 3
        assert benchmark.categories == ("cat", "cattle")


def test_categories_are_those_of_all_splits(spair):
    layout = spair / "Layout/large/val.txt"
    layout.write_text(layout.read_text().splitlines()[0])
    assert build_benchmark("spair", spair, "val").categories == ("bird", "cat")
    with pytest.raises(DatasetError, match="split 'val' has no pair of category 'cat'"):
        build_benchmark("spair", spair, "val", "cat")


def test_empty_split_is_refused(spair, pfpascal):
    (spair / "Layout/large/val.txt").write_text("\n")
    with pytest.raises(DatasetError, match="val.txt: split 'val' has no pair of category 'all'"):
        build_benchmark("spair", spair, "val")
    write_csv(pfpascal / "val_pairs.csv", ["source_image", "target_image", "class"], [])
    with pytest.raises(DatasetError, match="val_pairs.csv: split 'val' has no pair of category 'all'"):
        build_benchmark("pfpascal", pfpascal, "val")


def test_unknown_names_list_the_known(spair, pfwillow):
    with pytest.raises(ValueError, match="unknown data set: 'spiar'. Did you mean 'spair'. Known: spair, pfpascal"):
        build_benchmark("spiar", spair, "trn")
    with pytest.raises(ValueError, match="unknown split of spair: 'train'.*Known: trn, val, test"):
        build_benchmark("spair", spair, "train")
    with pytest.raises(ValueError, match="unknown category of spair: 'birds'. Did you mean 'bird'. Known: all, bird"):
        build_benchmark("spair", spair, "trn", "birds")
    with pytest.raises(ValueError, match="unknown split of pfwillow: 'trn'. Known: test$"):
        build_benchmark("pfwillow", pfwillow, "trn")
    assert list(BENCHMARKS) == ["spair", "pfpascal", "pfwillow"]


# Errors


def test_missing_root_and_split_file(spair, tmp_path):
    with pytest.raises(MissingDataError, match=r"(?s)nowhere: no such folder.*SPair-71k/.*prepare_data.sh spair"):
        build_benchmark("spair", tmp_path / "nowhere", "trn")
    with pytest.raises(FileNotFoundError, match=r"trn.txt: no such file.*Did you mean the root .*SPair-71k\?"):
        build_benchmark("spair", tmp_path, "trn")
    (spair / "Layout/large/val.txt").unlink()
    with pytest.raises(MissingDataError, match="val.txt: no such file"):
        build_benchmark("spair", spair, "val")
    assert len(build_benchmark("spair", spair, "trn")) == 6


def test_missing_spair_annotation_and_image(spair):
    path = spair / "PairAnnotation/trn/000002-2008_000001-2008_000002:bird.json"
    content = path.read_text()
    path.unlink()
    with pytest.raises(
        MissingDataError, match=r"(?s)000002-.*bird.json: no such file \(line 2 of .*trn.txt\).*prepare"
    ):
        build_benchmark("spair", spair, "trn")
    path.write_text(content)
    (spair / "JPEGImages/cat/2008_000001.jpg").unlink()
    with pytest.raises(MissingDataError, match=r"(?s)1 of 6 images are missing: .*cat/2008_000001.jpg.*JPEGImages/"):
        build_benchmark("spair", spair, "trn")
    assert len(build_benchmark("spair", spair, "trn", "bird")) == 3


def test_missing_annotation_folder(spair):
    (spair / "PairAnnotation").rename(spair / "elsewhere")
    with pytest.raises(MissingDataError, match="PairAnnotation/trn: no such folder"):
        build_benchmark("spair", spair, "trn")


@pytest.mark.parametrize("line", ["000001-a-b", "a:bird", "000001-a-b:bird/x", "../../x-1-2:bird"])
def test_bad_layout_line_is_numbered(spair, line):
    layout = spair / "Layout/large/trn.txt"
    lines = layout.read_text().splitlines()
    layout.write_text("\n".join([*lines[:3], "", line, *lines[3:]]))
    with pytest.raises(DatasetError, match=r"trn.txt, line 5: .*not of the form"):
        build_benchmark("spair", spair, "trn")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trg_kps": None}, "key 'trg_kps' is missing"),
        ({"trg_kps": [[1, 2]]}, "keypoint counts differ: 5 in the source, 1 in the target, 5 names"),
        ({"kps_ids": ["1"]}, "keypoint counts differ.* 1 names"),
        ({"src_kps": "here"}, r"key 'src_kps' is 'here', expected a list of \[x, y\] points"),
        ({"src_kps": [[1, 2], [3]]}, "key 'src_kps' is .*expected a list"),
        ({"src_kps": [[1, None]]}, "key 'src_kps' is .*expected a list"),
        ({"src_kps": [[1, float("nan")]] * 5}, "key 'src_kps' is .*expected a list"),
        ({"src_kps": [["1", "2"]]}, "key 'src_kps' is .*expected a list"),
        ({"kps_ids": 5}, "key 'kps_ids' is 5, expected a list of names"),
        ({"trg_bndbox": [1, 2, 3]}, r"key 'trg_bndbox' is \[1, 2, 3\], expected \[x1, y1, x2, y2\]"),
        ({"trg_bndbox": [5, 2, 5, 9]}, r"the target box \[5.0, 2.0, 5.0, 9.0\] has no area"),
        ({"src_bndbox": [9, 2, 5, 9]}, "the source box .* has no area"),
        ({"src_imsize": [0, 5, 3]}, "key 'src_imsize' is .*expected .width, height, channels"),
        ({"src_imsize": [99, 98, 3]}, "image bird-2008_000000 has size .*48, 64.*, elsewhere .*98, 99"),
        ({"src_imname": 7}, "key 'src_imname' is 7, expected a text"),
        ({"category": "cat"}, "key 'category' is 'cat', but its layout line says 'bird'"),
        ({"mirror": "no"}, "key 'mirror' is 'no', expected a small whole number"),
    ],
)
def test_wrong_spair_annotation(spair, changes, message):
    name = "000003-2008_000002-2008_000000:bird.json"
    if "src_imsize" in changes:
        name = "000001-2008_000000-2008_000001:bird.json"
    edit_json(spair / "PairAnnotation/trn" / name, **changes)
    with pytest.raises(DatasetError, match=rf"(?s)PairAnnotation.*{message}.*sh script/prepare_data.sh spair"):
        build_benchmark("spair", spair, "trn")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b'{"a": ', "not valid JSON"), (b"\xff\xfe\x00x", "not valid JSON"), (b"[]", "a list")],
)
def test_invalid_json(spair, content, message):
    (spair / "PairAnnotation/trn/000001-2008_000000-2008_000001:bird.json").write_bytes(content)
    with pytest.raises(DatasetError, match=rf"000001-.*bird.json: .*{message}"):
        build_benchmark("spair", spair, "trn")


def test_more_keypoints_than_fit(spair, pfpascal, pfwillow):
    path = spair / "PairAnnotation/trn/000001-2008_000000-2008_000001:bird.json"
    points = [[n, n] for n in range(31)]
    edit_json(path, src_kps=points, trg_kps=points, kps_ids=[str(n) for n in range(31)])
    with pytest.raises(DatasetError, match="31 keypoints, but this data set has at most 30"):
        build_benchmark("spair", spair, "trn")
    for image in ("2009_000000", "2009_000002"):
        write_mat(pfpascal, "cat", image, np.ones((21, 2)), [1, 2, 30, 40])
    with pytest.raises(DatasetError, match="test_pairs.csv, line 2: 21 keypoints.* at most 20"):
        build_benchmark("pfpascal", pfpascal, "test")
    row = ["PF-dataset/car(G)/img_000.png", "PF-dataset/car(G)/img_001.png", *range(44)]
    write_csv(pfwillow / "test_pairs.csv", willow_header(11), [row])
    with pytest.raises(DatasetError, match="column XA11, YA11, XB11, YB11: .* at most 10"):
        build_benchmark("pfwillow", pfwillow, "test")


@pytest.mark.parametrize("number", ["0", "21", "cat", "1.5", ""])
def test_wrong_class_number(pfpascal, number):
    write_csv(
        pfpascal / "val_pairs.csv",
        ["source_image", "target_image", "class"],
        [["d/a.jpg", "d/b.jpg", number]],
    )
    with pytest.raises(
        DatasetError, match=rf"(?s)val_pairs.csv, line 2: column 'class' is '?{number}.*prepare_data.sh"
    ):
        build_benchmark("pfpascal", pfpascal, "val")


def test_wrong_flip(pfpascal):
    path = pfpascal / "trn_pairs.csv"
    path.write_text(path.read_text().replace(",8,1", ",8,2"))
    with pytest.raises(DatasetError, match="trn_pairs.csv, line 3: column 'flip' is '2', expected a whole number 0..1"):
        build_benchmark("pfpascal", pfpascal, "trn")


def test_csv_without_the_columns(pfpascal, pfwillow):
    write_csv(pfpascal / "val_pairs.csv", ["source_image", "label"], [["a", 1]])
    with pytest.raises(DatasetError, match="val_pairs.csv: column target_image, class missing; the header is"):
        build_benchmark("pfpascal", pfpascal, "val")
    write_csv(pfwillow / "test_pairs.csv", willow_header(9), [])
    with pytest.raises(DatasetError, match="test_pairs.csv: column XA10, YA10, XB10, YB10 missing"):
        build_benchmark("pfwillow", pfwillow, "test")


@pytest.mark.parametrize(("value", "message"), [("", "is empty"), ("../x/y.jpg", "below the root"), ("y.jpg", "below")])
def test_wrong_image_path(pfpascal, value, message):
    header = ["source_image", "target_image", "class"]
    write_csv(pfpascal / "val_pairs.csv", header, [[value, "PF-dataset-PASCAL/JPEGImages/2009_000000.jpg", 8]])
    with pytest.raises(DatasetError, match=f"val_pairs.csv, line 2: column 'source_image' .*{message}"):
        build_benchmark("pfpascal", pfpascal, "val")


def test_not_a_number_in_csv(pfwillow):
    path = pfwillow / "test_pairs.csv"
    path.write_text(path.read_text().replace("54.0", "left", 1))
    with pytest.raises(DatasetError, match=r"test_pairs.csv, line 2: column 'XA1' is 'left', expected a number"):
        build_benchmark("pfwillow", pfwillow, "test")


def test_willow_points_without_extent(pfwillow):
    row = ["PF-dataset/car(G)/img_000.png", "PF-dataset/car(G)/img_001.png", *([5] * 40)]
    write_csv(pfwillow / "test_pairs.csv", willow_header(), [row])
    with pytest.raises(DatasetError, match="test_pairs.csv, line 2: the source box .* has no area"):
        build_benchmark("pfwillow", pfwillow, "test")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"bbox": [[1, 2, 3, 4]]}, "key 'kps' is missing"),
        ({"kps": np.ones((6, 2))}, "key 'bbox' is missing"),
        (
            {"kps": np.ones((6, 3)), "bbox": [[1, 2, 3, 4]]},
            r"key 'kps' has shape \(6, 3\), expected \(N, 2\)",
        ),
        ({"kps": np.ones((6, 2)), "bbox": [[1, 2, 3]]}, r"key 'bbox' has shape \(1, 3\), expected \(1, 4\)"),
        ({"kps": "text", "bbox": [[1, 2, 3, 4]]}, "key 'kps' is of type .*expected numbers"),
        (
            {"kps": np.ones((5, 2)), "bbox": [[1, 2, 3, 4]]},
            "keypoint counts differ: 6 in 2009_000002.mat, 5 in 2009",
        ),
        ({"kps": np.ones((6, 2)), "bbox": [[3, 2, 3, 4]]}, "the target box .* has no area"),
    ],
)
def test_wrong_mat(pfpascal, content, message):
    savemat(pfpascal / "PF-dataset-PASCAL/Annotations/cat/2009_000000.mat", content)
    with pytest.raises(DatasetError, match=f"(?s){message}.*prepare_data.sh pfpascal"):
        build_benchmark("pfpascal", pfpascal, "test")


def test_damaged_and_missing_files_of_pfpascal(pfpascal):
    mat = pfpascal / "PF-dataset-PASCAL/Annotations/cat/2009_000000.mat"
    mat.write_bytes(b"MATLAB 5.0 MAT-file" + bytes(40))
    with pytest.raises(DatasetError, match="2009_000000.mat: not a readable MAT file"):
        build_benchmark("pfpascal", pfpascal, "test")
    mat.unlink()
    with pytest.raises(MissingDataError, match=r"2009_000000.mat: no such file \(.*test_pairs.csv, line 2"):
        build_benchmark("pfpascal", pfpascal, "test")
    image = pfpascal / "PF-dataset-PASCAL/JPEGImages/2009_000000.jpg"
    image.write_bytes(b"not an image")
    with pytest.raises(DatasetError, match="2009_000000.jpg: not a readable image"):
        build_benchmark("pfpascal", pfpascal, "test")
    image.unlink()
    with pytest.raises(MissingDataError, match="2009_000000.jpg: no such image"):
        build_benchmark("pfpascal", pfpascal, "test")


def test_image_removed_after_indexing(pfwillow):
    build_benchmark("pfwillow", pfwillow, "test")
    image = pfwillow / "PF-dataset/car(G)/img_001.png"
    image.unlink()
    with pytest.raises(MissingDataError, match="img_001.png: no such image"):
        build_benchmark("pfwillow", pfwillow, "test")
    draw_image(image, (50, 40))
    assert build_benchmark("pfwillow", pfwillow, "test")[0].trg.size == (50, 40)
