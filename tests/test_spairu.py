"""SPair-U: both layouts of its folders, with and without lists, and pair files that disagree with image files."""

import json
import shutil

import pytest

from dataset import MissingDataError, build_benchmark
from tests.fixtures_dataset import tiny_spair
from tests.test_symmetry import write_images


def make(tmp_path, extra=False, images=True):
    """SPair-71k with its pictures, and SPair-U's annotations beside it or, `extra`, in it."""
    spair = tiny_spair(tmp_path)
    root = spair if extra else tmp_path / "SPair-U"
    prefix = "Extra" if extra else ""
    shutil.copytree(spair / "PairAnnotation/test", root / f"{prefix}PairAnnotation/test")
    if images:
        write_images(spair)
        (spair / "ImageAnnotation").rename(root / f"{prefix}ImageAnnotation")
    return tmp_path / "SPair-U"


@pytest.mark.parametrize("extra", [False, True])
@pytest.mark.parametrize("images", [False, True])
def test_both_layouts_without_lists(tmp_path, extra, images, caplog):
    benchmark = build_benchmark("spairu", make(tmp_path, extra, images), "test")
    assert benchmark.categories == ("bird", "cat") and len(benchmark) == 4
    record = benchmark[0]
    assert record.src.identifier == "bird-2008_000001" and record.src.path.endswith("JPEGImages/bird/2008_000001.jpg")
    assert record.kps_ids == ("0", "2", "4", "6", "8") + ("10",) * images  # point 10 is in the image files alone
    assert benchmark.find_symmetry("cat") is None  # its ids are other points than SPair-71k's
    assert ("4 of 4 pair files" in caplog.text) == images


def test_pair_files_that_agree_are_not_complained_of(tmp_path, caplog):
    root = make(tmp_path)
    for path in (root / "ImageAnnotation").rglob("*.json"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record | {"kps": record["kps"] | {"10": None}}))
    assert len(build_benchmark("spairu", root, "test")[0].kps_ids) == 5 and not caplog.text


def test_a_list_of_its_own_and_colons(tmp_path):
    root = make(tmp_path, images=False)
    lines = sorted(path.stem for path in (root / "PairAnnotation/test").iterdir())
    (root / "Layout/large").mkdir(parents=True)
    (root / "Layout/large/test.txt").write_text("\n".join(lines[:2]))
    assert len(build_benchmark("spairu", root, "test")) == 2
    (root / "Layout/large/test.txt").unlink()
    for path in (root / "PairAnnotation/test").iterdir():
        path.rename(path.with_name(path.name.replace(":", "_")))
    assert [record.pair_id for record in build_benchmark("spairu", root, "test")] == lines


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(MissingDataError, match="(?s)SPair-U: no such folder.*prepare_data.sh spairu"):
        build_benchmark("spairu", tmp_path / "SPair-U", "test")
    (tmp_path / "SPair-U").mkdir()
    with pytest.raises(MissingDataError, match="(?s)SPair-U/PairAnnotation/test: no such folder.*ExtraPairAnnotation"):
        build_benchmark("spairu", tmp_path / "SPair-U", "test")


def test_ids_outside_the_tables_of_spair_are_refused(tmp_path):
    root = tiny_spair(tmp_path)
    path = next((root / "PairAnnotation/test").glob("*cat.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"kps_ids": ["0", "2", "4", "6", "15"]}))
    with pytest.raises(ValueError, match=r"cat.json: keypoint '15' is outside the table of cat: ids are 0..14"):
        build_benchmark("spair", root, "test")
