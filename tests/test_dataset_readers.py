"""What the three readers make of small real files, and what they say about wrong ones."""

import json

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from scipy.sparse import csc_matrix

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
    assert (benchmark.categories, benchmark.threshold_rule, benchmark.max_kps) == (("bird", "cat"), "bbox", 30)
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
    with pytest.raises(ValueError, match="known are bbox, image, kps, "):
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
    assert {"spair", "pfpascal", "pfwillow"} <= set(BENCHMARKS)


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
    with pytest.raises(MissingDataError, match=r"(?s)000002-.*bird.json: no such file.*prepare"):
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


@pytest.mark.parametrize(
    "line",
    [
        *("000001-a-b", "a:bird", "000001-a-b:bird/x", "../../x-1-2:bird"),
        *("000001-a-b:..", "000001-a\x0b-b:bird", "000001-a\\c-b:bird"),  # names of files only
    ],
)
def test_bad_layout_line_is_numbered(spair, line):
    layout = spair / "Layout/large/trn.txt"
    lines = layout.read_text().splitlines()
    layout.write_text("\n".join([*lines[:3], "", line, *lines[3:]]))
    with pytest.raises(DatasetError, match=r"trn.txt, line 5: .*not of the form"):
        build_benchmark("spair", spair, "trn")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trg_kps": None}, "'trg_kps' is missing"),
        ({"trg_kps": [[1, 2]]}, "keypoint counts differ: 5 in the source, 1 in the target, 5 names"),
        ({"kps_ids": ["1"]}, "keypoint counts differ.* 1 names"),
        ({"src_kps": "here"}, r"'src_kps' is 'here', expected a list of \[x, y\] points"),
        ({"src_kps": [[1, 2], [3]]}, "'src_kps' is .*expected a list"),
        ({"src_kps": [[1, None]]}, "'src_kps' is .*expected a list"),
        ({"src_kps": [[1, float("nan")]] * 5}, "'src_kps' is .*expected a list"),
        ({"src_kps": [["1", "2"]]}, "'src_kps' is .*expected a list"),
        ({"kps_ids": 5}, "'kps_ids' is 5, expected a list of names"),
        ({"trg_bndbox": [1, 2, 3]}, r"'trg_bndbox' is \[1, 2, 3\], expected \[x1, y1, x2, y2\]"),
        ({"trg_bndbox": [5, 2, 900, 9]}, r"the box of the target is \(5, 2, 900, 9\), outside its image of 64 x 48 px"),
        ({"src_bndbox": [-90, 2, 5, 9]}, r"the box of the source is \(-90, 2, 5, 9\), outside its image of 60 x 60 px"),
        (
            {"src_kps": [[1, 2]] * 4 + [[3, 80]]},
            r"keypoint 8 of the source is \(3, 80\), outside its image of 60 x 60 px",
        ),
        ({"trg_kps": [[1e300, 2]] * 5}, r"'trg_kps' is \[\[1e\+300, 2\], .*none infinite or beyond"),
        ({"trg_kps": [[-50, 2]] * 5}, r"keypoint 0 of the target is \(-50, 2\), outside"),
        ({"src_kps": [[10**400, 2]] * 5}, "'src_kps' is .*expected a list"),
        ({"src_kps": [[[1, 2]]]}, "'src_kps' is .*expected a list"),
        ({"src_kps": {"x": 1}}, "'src_kps' is .*expected a list"),
        ({"src_imsize": [1e300, 5, 3]}, "'src_imsize' is .*expected .width, height, channels"),
        ({"src_imsize": [60.5, 60, 3]}, "'src_imsize' is .*expected .width, height, channels"),
        ({"src_imname": "../../../etc/passwd.jpg"}, "'src_imname' is '../../../etc/passwd.jpg', expected the name"),
        ({"src_imname": "/etc/passwd.jpg"}, "'src_imname' is '/etc/passwd.jpg', expected the name"),
        ({"src_imname": "..\\a.jpg"}, "'src_imname' is .*expected the name"),
        ({"src_imname": "a\n.jpg"}, "'src_imname' is .*expected the name"),
        ({"src_imname": ".."}, "'src_imname' is '..', expected the name"),
        (
            {"src_imname": "2008_000001.png"},
            "image bird-2008_000001 is .*bird/2008_000001.png of size .*elsewhere .*jpg",
        ),
        ({"src_imsize": [0, 5, 3]}, "'src_imsize' is .*expected .width, height, channels"),
        ({"src_imsize": [99, 98, 3]}, r"image bird-2008_000000 is .*\(48, 64\), elsewhere .*\(98, 99\)"),
        ({"src_imname": 7}, "'src_imname' is 7, expected the name of an image file"),
        ({"category": "cat"}, "'category' is 'cat', expected 'bird' as its layout line says"),
        ({"mirror": "no"}, "'mirror' is 'no', expected a number"),
        ({"mirror": True}, "'mirror' is True, expected a whole number -1..127"),
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
    [
        (b'{"a": ', "not valid JSON"),
        (b"", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"src_kps": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"\xff\xfe\x00x", "not UTF-8"),
        (b"[]", "expected an object"),
    ],
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
    with pytest.raises(DatasetError, match="unknown column: 'XA11'"):
        build_benchmark("pfwillow", pfwillow, "test")


@pytest.mark.parametrize("number", ["0", "21", "cat", "1.5", ""])
def test_wrong_class_number(pfpascal, number):
    write_csv(pfpascal / "val_pairs.csv", ["source_image", "target_image", "class"], [["d/a.jpg", "d/b.jpg", number]])
    with pytest.raises(DatasetError, match=rf"(?s)val_pairs.csv, line 2: 'class' is '?{number}.*prepare_data.sh"):
        build_benchmark("pfpascal", pfpascal, "val")


def test_wrong_flip(pfpascal):
    path = pfpascal / "trn_pairs.csv"
    path.write_text(path.read_text().replace(",8,1", ",8,2"))
    with pytest.raises(DatasetError, match="trn_pairs.csv, line 3: 'flip' is '2', expected a whole number 0..1"):
        build_benchmark("pfpascal", pfpascal, "trn")


def test_csv_without_the_columns(pfpascal, pfwillow):
    write_csv(pfpascal / "val_pairs.csv", ["source_image", "label"], [["a", 1]])
    with pytest.raises(DatasetError, match="val_pairs.csv: column target_image, class missing; the header is"):
        build_benchmark("pfpascal", pfpascal, "val")
    write_csv(pfwillow / "test_pairs.csv", willow_header(9), [])
    with pytest.raises(DatasetError, match="test_pairs.csv: column XA10, YA10, XB10, YB10 missing"):
        build_benchmark("pfwillow", pfwillow, "test")


@pytest.mark.parametrize(
    ("value", "message"),
    [("", "is '', expected a path"), ("y.jpg", "below")]
    + [
        (path, "below the root") for path in ("../x/y.jpg", "/etc/a/b.jpg", "C:\\a\\b.jpg", "a/..\\b.jpg", "a/../b.jpg")
    ],
)
def test_wrong_image_path(pfpascal, value, message):
    header = ["source_image", "target_image", "class"]
    write_csv(pfpascal / "val_pairs.csv", header, [[value, "PF-dataset-PASCAL/JPEGImages/2009_000000.jpg", 8]])
    with pytest.raises(DatasetError, match=f"val_pairs.csv, line 2: 'source_image' .*{message}"):
        build_benchmark("pfpascal", pfpascal, "val")


def test_not_a_number_in_csv(pfwillow):
    path = pfwillow / "test_pairs.csv"
    path.write_text(path.read_text().replace("54.0", "left", 1))
    with pytest.raises(DatasetError, match=r"test_pairs.csv, line 2: 'XA1' is 'left', expected a number"):
        build_benchmark("pfwillow", pfwillow, "test")


def test_willow_points_without_extent(pfwillow):
    row = ["PF-dataset/car(G)/img_000.png", "PF-dataset/car(G)/img_001.png", *([5] * 40)]
    write_csv(pfwillow / "test_pairs.csv", willow_header(), [row])
    message = "no pair of category 'all'; all are left out, the first for .*line 2: all keypoints .* in one place"
    with pytest.raises(DatasetError, match=message):
        build_benchmark("pfwillow", pfwillow, "test")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"bbox": [[1, 2, 3, 4]]}, "'kps' is missing"),
        ({"kps": np.ones((6, 2))}, "'bbox' is missing"),
        (
            {"kps": np.ones((6, 3)), "bbox": [[1, 2, 3, 4]]},
            r"'kps' is ndarray \(6, 3\) of float64, expected an array \(N, 2\)",
        ),
        (
            {"kps": np.ones((6, 2)), "bbox": [[1, 2, 3]]},
            r"'bbox' is ndarray \(3,\) of int64, expected an array \(1, 4\)",
        ),
        ({"kps": "text", "bbox": [[1, 2, 3, 4]]}, "'kps' is ndarray .*of <U4, expected an array .N, 2. of numbers"),
        ({"kps": np.ones((5, 2)), "bbox": [[1, 2, 3, 4]]}, "keypoint counts differ: 6 in 2009_000002.mat, 5 in 2009"),
        (
            {"kps": csc_matrix(np.ones((6, 2))), "bbox": [[1, 2, 3, 4]]},
            "'kps' is (csc|coo)_.*expected an array .N, 2. of numbers",
        ),
        ({"kps": np.full((6, 2), np.inf), "bbox": [[1, 2, 3, 4]]}, "'kps' is .*none infinite or beyond"),
        ({"kps": np.ones((6, 2)), "bbox": [[1, 2, 3, np.nan]]}, "'bbox' is .*none infinite"),
        ({"kps": np.full((6, 2), 1e8), "bbox": [[1, 2, 3, 4]]}, "keypoint 0 of the target is .*outside its image"),
        ({"kps": np.full((6, 2), -1), "bbox": [[1, 2, 3, 4]]}, r"keypoint 0 is \(-1, -1\); an absent one is NaN"),
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
    with pytest.raises(DatasetError, match="2009_000000.jpg cannot be opened: not an image"):
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
    draw_image(image, (72, 60))
    assert build_benchmark("pfwillow", pfwillow, "test")[0].trg.size == (72, 60)


# What cannot be true, and what is told apart


def test_repeated_layout_line_is_refused(spair):
    layout = spair / "Layout/large/trn.txt"
    lines = layout.read_text().splitlines()
    layout.write_text("\n".join([*lines, lines[1]]))
    with pytest.raises(DatasetError, match=r"trn.txt, line 7: '000002-.*:bird' stands in line 2 already"):
        build_benchmark("spair", spair, "trn")


def test_a_category_may_not_be_called_all(tmp_path):
    with pytest.raises(DatasetError, match="trn.txt: a category is called 'all'"):
        build_benchmark("spair", tiny_spair(tmp_path, ("all", "cat")), "trn")


def test_points_may_lie_a_little_outside(spair):
    """Annotators click beyond the border: up to 2 px and 5 % of the side."""
    path = spair / "PairAnnotation/trn/000001-2008_000000-2008_000001:bird.json"
    edit_json(path, src_kps=[[-5, 50], [69, 0], [0, 0], [-1, -1], [63, 47]], src_bndbox=[-3, 0, 66, 50])
    assert build_benchmark("spair", spair, "trn")[0].src_kps[:2].tolist() == [[-5, 50], [69, 0]]


def test_pair_whose_target_box_has_no_area_is_left_out_and_counted(spair, caplog):
    edit_json(spair / "PairAnnotation/trn/000002-2008_000001-2008_000002:bird.json", trg_bndbox=[5, 2, 5, 9])
    for _ in range(2):  # also from the index
        caplog.clear()
        benchmark = build_benchmark("spair", spair, "trn")
        assert [record.pair_id[:6] for record in benchmark] == ["000001", "000003", "000004", "000005", "000006"]
        (reason,) = benchmark.left_out
        assert "000002-2008_000001-2008_000002:bird.json: the target's box [5.0, 2.0, 5.0, 9.0] has no area" in reason
        (line,) = [record.message for record in caplog.records if "left out" in record.message]
        assert line.startswith("spair trn: 1 of 6 pairs are left out; the first is /")
    assert build_benchmark("spair", spair, "trn", "cat").left_out == []


def test_boxes_that_give_no_threshold_need_no_area(spair, pfpascal):
    edit_json(spair / "PairAnnotation/trn/000002-2008_000001-2008_000002:bird.json", src_bndbox=[9, 2, 5, 9])
    for image in ("2009_000000", "2009_000001", "2009_000002"):
        write_mat(pfpascal, "cat", image, object_points(SIZES[0], 6), [3, 2, 3, 4])
    for name, root, count in (("spair", spair, 6), ("pfpascal", pfpascal, 4)):
        benchmark = build_benchmark(name, root, "trn")
        assert len(benchmark) == count and benchmark.left_out == []


def willow_with(root, **cells):
    """Changes cells of the first row."""
    path = root / "test_pairs.csv"
    header, first, *rest = path.read_text().splitlines()
    values = dict(zip(header.split(","), first.split(","), strict=True)) | cells
    path.write_text("\n".join([header, ",".join(map(str, values.values())), *rest]))


def test_willow_pair_without_common_points_is_left_out(pfwillow):
    willow_with(pfwillow, **{f"XA{n}": "" for n in range(1, 6)}, **{f"XB{n}": "" for n in range(6, 11)})
    benchmark = build_benchmark("pfwillow", pfwillow, "test")
    assert len(benchmark) == 3 and "line 2: no keypoint is present in both images" in benchmark.left_out[0]


@pytest.mark.parametrize("mark", [-1, 0])
def test_marks_of_other_formats_for_absent_points_are_refused(pfwillow, mark):
    willow_with(pfwillow, XB3=mark, YB3=float(mark))
    message = rf"test_pairs.csv, line 2: keypoint B3 is \({mark}, {mark}\); an absent one is an empty cell"
    with pytest.raises(DatasetError, match=message):
        build_benchmark("pfwillow", pfwillow, "test")


def test_rows_have_as_many_cells_as_the_header(pfpascal):
    path = pfpascal / "trn_pairs.csv"
    text = path.read_text()
    for changed in (text.replace(",8,1", ",8", 1), text.replace(",8,1", ",8,1,1", 1)):
        path.write_text(changed)
        with pytest.raises(DatasetError, match=r"trn_pairs.csv, line 3: [35] cells, but the header has 4 columns"):
            build_benchmark("pfpascal", pfpascal, "trn")


def test_unknown_and_doubled_columns_are_refused(pfpascal):
    path = pfpascal / "trn_pairs.csv"
    text = path.read_text()
    path.write_text(text.replace("flip", "Flip"))
    with pytest.raises(DatasetError, match="trn_pairs.csv: unknown column: 'Flip'. Did you mean 'flip'?"):
        build_benchmark("pfpascal", pfpascal, "trn")
    path.write_text(text.replace("flip", "class"))
    with pytest.raises(DatasetError, match="trn_pairs.csv: a column stands twice"):
        build_benchmark("pfpascal", pfpascal, "trn")


def test_two_images_under_one_identifier_are_refused(pfpascal):
    images = pfpascal / "PF-dataset-PASCAL/JPEGImages"
    draw_image(images / "2009_000002.png", SIZES[2])
    path = pfpascal / "trn_pairs.csv"
    path.write_text(
        path.read_text()
        + f"PF-dataset-PASCAL/JPEGImages/2009_000001.jpg,{images.parts[-2]}/JPEGImages/2009_000002.png,8,0\n"
        f"PF-dataset-PASCAL/JPEGImages/2009_000001.jpg,{images.parts[-2]}/JPEGImages/2009_000002.jpg,8,0\n"
    )
    with pytest.raises(DatasetError, match=r"line 7: image cat-2009_000002-0 is .*jpg of size .*, elsewhere .*png"):
        build_benchmark("pfpascal", pfpascal, "trn")


# Habits of other systems and lists


def test_a_byte_order_mark_is_not_read(spair, pfpascal, pfwillow):
    bom = b"\xef\xbb\xbf"
    files = [spair / "Layout/large/trn.txt", *(spair / "PairAnnotation/trn").iterdir()]
    for path in (*files, pfpascal / "trn_pairs.csv", pfwillow / "test_pairs.csv"):
        path.write_bytes(bom + path.read_bytes())
    assert len(build_benchmark("spair", spair, "trn")) == 6
    assert len(build_benchmark("pfpascal", pfpascal, "trn")) == len(build_benchmark("pfwillow", pfwillow, "test")) == 4


def test_an_underscore_stands_for_the_colon_on_disks_of_windows(spair):
    expected = [record.src_kps.tolist() for record in build_benchmark("spair", spair, "trn")]
    for path in (spair / "PairAnnotation/trn").iterdir():
        path.rename(path.with_name(path.name.replace(":", "_")))
    benchmark = build_benchmark("spair", spair, "trn")
    assert [record.src_kps.tolist() for record in benchmark] == expected and benchmark[0].pair_id.endswith(":bird")


def test_ncnets_name_of_the_training_list(pfpascal):
    (pfpascal / "trn_pairs.csv").rename(pfpascal / "train_pairs.csv")
    assert len(build_benchmark("pfpascal", pfpascal, "trn")) == 4


def test_root_that_is_the_data_set_itself(spair):
    with pytest.raises(
        MissingDataError, match=r"SPair-71k is the data set itself: DATASET.ROOT is the folder above it"
    ):
        build_benchmark("spair", spair / "SPair-71k", "trn")


def test_advice_quotes_paths_with_spaces(tmp_path):
    with pytest.raises(MissingDataError, match=r"prepare_data.sh spair --root '.*/my data'` makes"):
        build_benchmark("spair", tmp_path / "my data" / "SPair-71k", "trn")


def test_exif_orientation_counts_in_sizes_of_pfpascal(pfpascal):
    path, exif = pfpascal / "PF-dataset-PASCAL/JPEGImages/2009_000000.jpg", Image.Exif()
    exif[0x0112] = 6
    with Image.open(path) as image:
        image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    assert build_benchmark("pfpascal", pfpascal, "trn")[0].src.size == SIZES[0]


def test_a_dangling_link_is_told(pfpascal, tmp_path):
    path = pfpascal / "PF-dataset-PASCAL/JPEGImages/2009_000000.jpg"
    path.unlink()
    path.symlink_to(tmp_path / "gone.jpg")
    with pytest.raises(MissingDataError, match="2009_000000.jpg: no such image .it is a link to .*gone.jpg"):
        build_benchmark("pfpascal", pfpascal, "test")


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 100, b"\xff\xd8\xff", b'"', b"a\n" * 9, b"\x00\n\x00,", b'"a' + b"x" * 200_000]
)
@pytest.mark.parametrize("name", ["Layout/large/trn.txt", "pf-pascal/trn_pairs.csv", "pf-willow/test_pairs.csv"])
def test_rubbish_is_answered_in_one_line_with_the_file(spair, pfpascal, pfwillow, name, content):
    benchmark, root, split = {"L": ("spair", spair, "trn"), "pf-p": ("pfpascal", pfpascal, "trn")}.get(
        name[: 1 if name[0] == "L" else 4], ("pfwillow", pfwillow, "test")
    )
    path = root / name.removeprefix(f"{root.name}/")
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=path.name) as caught:
        build_benchmark(benchmark, root, split)
    assert len(str(caught.value).splitlines()) == 1
