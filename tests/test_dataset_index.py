"""The index of a benchmark: used when fresh, rebuilt when stale or torn, and never needed."""

import json
import logging
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dataset import build_benchmark
from dataset.parse import read_record
from dataset.pfpascal import PFPascal
from dataset.record import FLAGS
from dataset.spair import SPair
from dataset.table import TableBuilder
from tests.fixtures_dataset import tiny_pfpascal, tiny_pfwillow, tiny_spair

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def reads(monkeypatch):
    """Counts how often the annotations of SPair are read."""
    calls = []
    original = SPair.read
    monkeypatch.setattr(SPair, "read", lambda self: calls.append(self.split) or original(self))
    return calls


@pytest.fixture
def root(tmp_path):
    return tiny_spair(tmp_path)


def assert_equal_records(first, second):
    for a, b in zip(first, second, strict=True):
        assert (a.pair_id, a.src, a.trg, a.kps_ids, a.flags) == (b.pair_id, b.src, b.trg, b.kps_ids, b.flags)
        for name in ("src_kps", "trg_kps", "src_bbox", "trg_bbox"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@pytest.mark.parametrize(
    ("name", "write"), [("spair", tiny_spair), ("pfpascal", tiny_pfpascal), ("pfwillow", tiny_pfwillow)]
)
def test_cached_records_are_the_same(tmp_path, monkeypatch, name, write):
    root = write(tmp_path)
    fresh = build_benchmark(name, root, "test")
    monkeypatch.setattr(type(fresh), "read", None)
    assert_equal_records(fresh, build_benchmark(name, root, "test"))


def test_hit_for_any_category(root, reads):
    build_benchmark("spair", root, "trn")
    build_benchmark("spair", root, "trn", "cat")
    assert reads == ["trn"]
    assert sorted(os.listdir(root / ".index")) == ["spair_trn.safetensors"]
    build_benchmark("spair", root, "val")
    assert reads == ["trn", "val"]


def test_stale_when_an_annotation_changes(root, reads, caplog):
    build_benchmark("spair", root, "trn")
    path = root / "PairAnnotation/trn/000001-2008_000000-2008_000001:bird.json"
    data = json.loads(path.read_text())
    data["src_kps"][0] = [7, 9]
    path.write_text(json.dumps(data))
    assert build_benchmark("spair", root, "trn")[0].src_kps[0].tolist() == [7, 9]
    assert reads == ["trn", "trn"]
    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == [
        f"index {root / '.index' / 'spair_trn.safetensors'} is stale "
        "(annotations, or settings of its pairs, have changed): rebuilding it"
    ]
    build_benchmark("spair", root, "trn")
    assert len(reads) == 2


def test_stale_when_the_layout_changes(root, reads):
    build_benchmark("spair", root, "trn")
    layout = root / "Layout/large/trn.txt"
    layout.write_text("\n".join(layout.read_text().splitlines()[::-1]))
    assert build_benchmark("spair", root, "trn")[0].pair_id.startswith("000006")
    assert len(reads) == 2


def test_stale_when_an_image_of_pfpascal_changes(tmp_path, monkeypatch):
    root = tiny_pfpascal(tmp_path)
    build_benchmark("pfpascal", root, "test")
    (root / "PF-dataset-PASCAL/JPEGImages/new.jpg").write_bytes(b"x")
    monkeypatch.setattr(PFPascal, "read", lambda self: pytest.fail("read"))
    with pytest.raises(pytest.fail.Exception):
        build_benchmark("pfpascal", root, "test")


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"rubbish" * 9, None])
def test_torn_index_is_rebuilt(root, reads, caplog, damage):
    first = build_benchmark("spair", root, "trn")
    path = root / ".index/spair_trn.safetensors"
    content = path.read_bytes()
    if damage is None:  # one byte inside a column
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])
    else:
        path.write_bytes(damage(content))
    assert_equal_records(first, build_benchmark("spair", root, "trn"))
    assert len(reads) == 2 and any("is torn" in record.message for record in caplog.records)
    build_benchmark("spair", root, "trn")
    assert len(reads) == 2


def test_other_index_root(root, reads, tmp_path):
    folder = tmp_path / "index"
    build_benchmark("spair", root, "trn", index_root=folder)
    build_benchmark("spair", root, "trn", index_root=folder)
    assert reads == ["trn"] and not (root / ".index").exists()
    other = tiny_spair(tmp_path / "other")
    build_benchmark("spair", other, "trn", index_root=folder)
    build_benchmark("spair", root, "trn", index_root=folder)
    assert reads == ["trn", "trn"] and len(list(folder.glob("SPair-71k-*/spair_trn.safetensors"))) == 2


def test_unwritable_index_root_costs_a_warning(root, reads, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    for _ in range(2):
        assert len(build_benchmark("spair", root, "trn", index_root=tmp_path / "file")) == 6
    assert len(reads) == 2
    assert any("cannot write the index" in r.message and "index_root" in r.message for r in caplog.records)


def test_interrupted_writing_leaves_no_file(root, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    assert len(build_benchmark("spair", root, "trn")) == 6
    assert os.listdir(root / ".index") == []


def test_empty_table():
    table = TableBuilder("bbox", max_kps=3).build()
    assert table.kps.shape == (0, 2, 2) and table.kps_start.tolist() == [0] and table.flags.shape == (0, len(FLAGS))


def test_indexing_says_how_far_it_is(root, monkeypatch, capsys):
    monkeypatch.setattr("utils.progress.LINE_EVERY", 0.01)
    monkeypatch.setattr("dataset.spair.read_record", lambda *args: time.sleep(0.02) or read_record(*args))
    build_benchmark("spair", root, "trn")
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("indexing spair trn: 100%") and "6/6" in lines[-1]


def test_without_the_packages_of_an_index_it_is_read_anew(root, monkeypatch, reads):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert len(build_benchmark("spair", root, "trn")) == len(build_benchmark("spair", root, "trn")) == 6
    assert len(reads) == 2 and not (root / ".index").exists()


def test_a_dangling_link_among_annotations_ends_nothing(root):
    (root / "PairAnnotation/trn/link.json").symlink_to("nowhere.json")
    assert len(build_benchmark("spair", root, "trn")) == 6


def test_names_with_odd_characters_come_back_from_the_index(tmp_path):
    root = tiny_spair(tmp_path, ("é ü", "(G)"))
    assert_equal_records(build_benchmark("spair", root, "trn"), build_benchmark("spair", root, "trn"))
