"""Permutations under mirroring and geometry-aware groups, and how pairs carry them."""

import hashlib
import json

import numpy as np
import pytest
import torch

from dataset import DatasetError, build_benchmark
from dataset.pair_dataset import PairDataset, collate
from dataset.symmetry import AP10K, SPAIR, Symmetry, find_table_flaw, read_symmetries
from mini.render.categories import CATEGORIES, SPECIES, keypoint_tables
from tests.fixtures_dataset import object_points, tiny_spair

TABLES = {**SPAIR, "AP-10K": AP10K}
POINTS = {  # as SPair-71k states them
    **{"aeroplane": 25, "bicycle": 12, "bird": 17, "boat": 14, "bottle": 10, "bus": 28, "car": 30, "cat": 15},
    **{"chair": 14, "cow": 21, "dog": 16, "horse": 20, "motorbike": 13, "person": 20, "pottedplant": 9, "sheep": 21},
    **{"train": 18, "tvmonitor": 16, "AP-10K": 17},
}


@pytest.mark.parametrize("name", TABLES)
def test_flip_twice_is_identity_and_groups_partition_the_ids(name):
    table = TABLES[name]
    ids = np.arange(len(table.permutation))
    assert (table.partners(table.partners(ids)) == ids).all() and not find_table_flaw(table)
    unused = {"bicycle": 2, "bus": 2}.get(name, 0)
    assert len(ids) == POINTS[name] + unused
    members = [i for group in table.groups for i in group]
    singletons = set(ids.tolist()) - set(members)
    assert sorted([*members, *singletons]) == ids.tolist() and all(len(group) > 1 for group in table.groups)


def test_tables_are_the_authors_entry_by_entry():
    """They were compared with theirs once; the digest is of every permutation and group."""
    entries = [(name, table.permutation, table.groups) for name, table in sorted(TABLES.items())]
    assert hashlib.sha256(repr(entries).encode()).hexdigest()[:16] == "8d7ae8e30e50526c"


def test_ap10k_permutation():
    assert AP10K.permutation == (1, 0, 2, 3, 4, 8, 9, 10, 5, 6, 7, 14, 15, 16, 11, 12, 13)
    assert AP10K.partners([17, -1, 5]).tolist() == [-1, -1, 8]


def test_geometry_aware_needs_another_of_the_group_in_the_target():
    cat = SPAIR["cat"]  # groups {2, 3} {9, 10, 11, 12}; the eyes 0, 1 are flipped, but in no group
    assert cat.find_aware([0, 2, 9], seen=[0, 1, 2, 9, 12]).tolist() == [False, False, True]


def test_mini_tables_are_read_and_bad_ones_are_refused(tmp_path):
    path = tmp_path / "keypoints.json"
    path.write_text(json.dumps(keypoint_tables([*CATEGORIES.values(), *SPECIES.values()])))
    tables = read_symmetries(path)
    assert tables["wolf"].permutation == AP10K.permutation and tables["horse"].groups
    for content, message in (
        ({"cat": {"flip": [1, 2, 0], "groups": []}}, "no permutation"),
        ({"cat": {"flip": [1, 0], "groups": [[0, 7]]}}, "outside the table"),
        ({"cat": {"groups": []}}, "not a table of keypoints"),
        ([1], "not a table of keypoints"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(DatasetError, match=message) as error:
            read_symmetries(path)
        assert "keypoints.json" in str(error.value)


def write_images(root, unseen=()):
    """ImageAnnotation of `tiny_spair`: keypoint 2n at place n of five; `unseen`: (image, id) that are null."""
    from tests.fixtures_dataset import SIZES

    for category in ("bird", "cat"):
        for image, size in enumerate(SIZES):
            points = object_points(size, 5).astype(int).tolist()
            kps = {str(2 * n): None if (image, 2 * n) in unseen else point for n, point in enumerate(points)}
            path = root / "ImageAnnotation" / category / f"2008_{image:06d}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"kps": kps | {"10": [5, 5], "1": None}, "azimuth_id": 3 - image}))


def test_batches_carry_ids_partners_and_all_that_an_image_shows(tmp_path):
    root = tiny_spair(tmp_path)
    write_images(root)
    benchmark = build_benchmark("spair", root, "test", "cat")
    batch = collate([PairDataset(benchmark, 64)[0]])  # images 1 -> 0
    assert batch["kps_ids"][0, :6].tolist() == [0, 2, 4, 6, 8, -1]
    assert batch["kps_partner"][0, :6].tolist() == [1, 3, 5, 7, 8, -1]
    assert batch["trg_seen_ids"][0, :7].tolist() == [0, 2, 4, 6, 8, 10, -1] and batch["seen_known"].tolist() == [True]
    assert batch["trg_seen_partner"][0, :7].tolist() == [1, 3, 5, 7, 8, 9, -1]
    assert torch.allclose(batch["trg_seen"][0, :5], batch["trg_kps"][0, :5])
    assert (batch["src_azimuth"].item(), batch["trg_azimuth"].item()) == (2, 3)
    assert not batch["kps_aware"].any()  # of the groups {2, 3} {9, 10, 11, 12} the target shows one each
    record = build_benchmark("spair", root, "test", "cat")[0]  # from the index
    assert record.trg_seen.ids == ("0", "2", "4", "6", "8", "10") and record.trg.azimuth == 3


def test_geometry_aware_asks_what_the_target_shows_not_the_source(tmp_path):
    root = tiny_spair(tmp_path)
    write_images(root)
    for image in (0, 2):  # of the pairs 1 -> 0 and 2 -> 1: the target of one, the source of the other
        path = root / f"ImageAnnotation/cat/2008_{image:06d}.json"
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record | {"kps": record["kps"] | {"10": None}}))
    (root / "keypoints.json").write_text(json.dumps({"cat": {"flip": list(range(11)), "groups": [[2, 10]]}}))
    pairs = PairDataset(build_benchmark("spair", root, "test", "cat"), 64)
    assert [pairs[i]["kps_aware"].nonzero().flatten().tolist() for i in (0, 1)] == [[], [1]]


def test_without_image_annotations_nothing_is_said_to_be_seen(tmp_path):
    item = PairDataset(build_benchmark("spair", tiny_spair(tmp_path), "test"), 64)[0]
    assert not item["seen_known"] and (item["trg_seen_ids"] == -1).all() and item["src_azimuth"] == -1


def test_own_tables_of_a_data_set_replace_the_known_ones(tmp_path):
    root = tiny_spair(tmp_path)
    write_images(root)
    tables = {"cat": {"names": [], "flip": list(range(11)), "groups": [[2, 8]]}}
    (root / "keypoints.json").write_text(json.dumps(tables))
    benchmark = build_benchmark("spair", root, "test", "cat")
    assert benchmark.find_symmetry("cat") == Symmetry(tuple(range(11)), ((2, 8),))
    assert PairDataset(benchmark, 64)[0]["kps_aware"][:5].tolist() == [False, True, False, False, True]
