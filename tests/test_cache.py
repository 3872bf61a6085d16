"""The feature cache: random access, resuming after any interruption, several processes, damage."""

import json
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from config import ROOT
from tests.test_store import flips
from utils.cache import CacheError, FeatureCache, file_name, fill_cache, hash_images

STAMP = {"network": "abc", "image_size": [96, 96]}
NAMES = [f"cat-{i}" for i in range(7)]
HASHES = {name: f"h{name}" for name in NAMES}
VALUES = {name: torch.full((2, 3), i + 0.5) for i, name in enumerate(NAMES)}


def open_cache(folder, stamp=STAMP, shape=(2, 3)):
    return FeatureCache(folder, stamp, shape)


def fill(folder, names=None, calls=None, hashes=HASHES, stamp=STAMP):
    cache = open_cache(folder, stamp)

    def compute(identifiers):
        if calls is not None:
            calls.extend(identifiers)
        return torch.stack([VALUES[name] for name in identifiers])

    fill_cache(cache, hashes, compute, missing=names or cache.missing(hashes.items()), batch_size=2)
    return open_cache(folder, stamp)


def path_of(cache, name):
    return cache.folder / file_name(name)


def assert_complete(cache):
    assert cache.missing(HASHES.items()) == []
    for name in NAMES:
        assert torch.equal(cache.get(name), VALUES[name].half())


def test_values_come_back_in_half_precision_under_the_name_of_the_specification(tmp_path):
    cache = fill(tmp_path)
    assert_complete(cache)
    assert "cat-3" in cache and "cat-9" not in cache and len(cache) == 7
    assert cache.folder.parent == tmp_path and cache.folder.name.startswith("cached_output.")


def test_unfinished_build_goes_on_without_double_work(tmp_path):
    fill(tmp_path, NAMES[:3])
    calls = []
    assert_complete(fill(tmp_path, calls=calls))
    assert sorted(calls) == NAMES[3:]


def test_a_run_takes_what_another_has_written_meanwhile(tmp_path):
    waiting, calls = open_cache(tmp_path), []
    missing = waiting.missing(HASHES.items())
    fill(tmp_path, NAMES[:5])
    fill_cache(
        waiting, HASHES, lambda names: calls.extend(names) or [VALUES[name] for name in names], missing, batch_size=4
    )
    assert sorted(calls) == NAMES[5:]
    assert_complete(open_cache(tmp_path))


FILLER = """
import sys, time, torch
from utils.cache import FeatureCache, fill_cache
folder, pause = sys.argv[1], float(sys.argv[2])
names = [f"cat-{i}" for i in range(7)]
cache = FeatureCache(folder, {"network": "abc", "image_size": [96, 96]}, (2, 3))
def compute(identifiers):
    print(*identifiers, sep="\\n", flush=True)
    time.sleep(pause)
    return torch.stack([torch.full((2, 3), names.index(name) + 0.5) for name in identifiers])
fill_cache(cache, {n: f"h{n}" for n in names}, compute, names, 1)
"""


def start_filler(folder, pause):
    return subprocess.Popen(
        [sys.executable, "-c", FILLER, str(folder), str(pause)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


def test_two_runs_at_once_share_the_work(tmp_path):
    runs = [start_filler(tmp_path, 0.3) for _ in range(2)]
    done = [run.communicate(timeout=60)[0].split() for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert set(done[0] + done[1]) == set(NAMES) and len(done[0] + done[1]) < 14
    assert_complete(open_cache(tmp_path))


def test_a_killed_build_goes_on_where_it_stopped(tmp_path):
    run = start_filler(tmp_path, 0.2)
    for _ in range(3):
        run.stdout.readline()
    run.kill()
    run.wait()
    calls = []
    assert_complete(fill(tmp_path, calls=calls))
    assert len(calls) in (4, 5)


def test_any_damage_costs_only_its_image_and_is_noticed_when_read(tmp_path):
    """Every kind: cut at any place, a bit flipped anywhere, replaced by another image's file, empty."""
    draw = random.Random(0)
    cache = fill(tmp_path)
    path, other = path_of(cache, "cat-2"), path_of(cache, "cat-3").read_bytes()
    whole = path.read_bytes()
    cuts = [whole[: draw.randrange(len(whole))] for _ in range(40)]
    for content in [b"", other, *cuts, *flips(whole, 300)]:
        path.write_bytes(content)
        assert open_cache(tmp_path).missing(HASHES.items()) == ["cat-2"]
        with pytest.raises(CacheError, match="cat-2.safetensors .*; run the script again"):
            open_cache(tmp_path).get("cat-2")
    calls = []
    assert_complete(fill(tmp_path, calls=calls))
    assert calls == ["cat-2"]


def test_changed_image_is_computed_again_and_the_new_entry_counts(tmp_path):
    fill(tmp_path)
    changed = {**HASHES, "cat-4": "other"}
    assert open_cache(tmp_path).missing(changed.items()) == ["cat-4"]
    new = torch.full((2, 3), 9.0)
    fill_cache(open_cache(tmp_path), changed, lambda names: new[None], ["cat-4"], 2)
    cache = open_cache(tmp_path)
    assert torch.equal(cache.get("cat-4"), new.half()) and cache.missing(changed.items()) == []


def test_other_settings_never_share_a_folder_and_each_says_what_made_it(tmp_path):
    ours = fill(tmp_path)
    other = open_cache(tmp_path, {**STAMP, "network": "xyz"})
    assert len(other) == 0 and other.folder != ours.folder
    assert open_cache(tmp_path, shape=(3, 2)).folder != ours.folder
    stamp = json.loads((ours.folder / "stamp.json").read_text())
    assert stamp["network"] == "abc" and stamp["shape"] == {"value": [2, 3]} and stamp["dtype"] == "float16"


def test_missing_entry_wrong_shape_and_overflow_are_named(tmp_path):
    cache = fill(tmp_path)
    with pytest.raises(CacheError, match="no entry for image dog-1"):
        cache.get("dog-1")
    with pytest.raises(CacheError, match=r"image dog-1: expected arrays of shape .*\(2, 3\)"):
        cache.put("dog-1", "h", torch.zeros(3, 2))
    for value in (1e6, float("nan"), float("inf")):
        with pytest.raises(CacheError, match="image dog-1: its features do not fit half precision"):
            cache.put("dog-1", "h", torch.full((2, 3), value))
    assert "dog-1" not in open_cache(tmp_path)


@pytest.mark.parametrize(
    "identifier",
    ["../../x", "a/b", "a\\b", "car(G)-1", "..", "", "x.safetensors", "a\nb", "C:x", "猫-1", "%2E", "long" * 90],
)
def test_any_identifier_stays_in_the_folder(tmp_path, identifier):
    cache = open_cache(tmp_path)
    cache.put(identifier, "h", torch.ones(2, 3))
    assert identifier in open_cache(tmp_path) and open_cache(tmp_path).missing([(identifier, "h")]) == []
    assert sorted(path.parent for path in tmp_path.rglob("*") if path.is_file()) == [cache.folder] * 2


def test_identifiers_never_share_a_file():
    names = ["a", "a.", ".a", "a b", "a%20b", "a/b", "a%2Fb", "x" * 300, "x" * 301]
    assert len({file_name(name) for name in names}) == len(names)


def test_an_entry_may_hold_several_named_arrays(tmp_path):
    shapes = {"up1": (2, 3), "up2": (4,)}
    cache = FeatureCache(tmp_path, STAMP, shapes)
    entry = {"up1": torch.ones(2, 3), "up2": torch.zeros(4)}
    fill_cache(cache, HASHES, lambda names: [entry] * len(names), NAMES, 3)
    found = FeatureCache(tmp_path, STAMP, shapes).get("cat-1")
    assert found.keys() == shapes.keys() and torch.equal(found["up1"], entry["up1"].half())


def test_several_threads_read_it(tmp_path):
    with ThreadPoolExecutor(2) as pool:
        values = list(pool.map(fill(tmp_path).get, NAMES))
    assert torch.equal(torch.stack(values), torch.stack(list(VALUES.values())).half())


def test_reading_is_checked_and_still_fast(tmp_path):
    """An entry of DINOv2's real size within 20 ms: a training step takes far longer."""
    cache = open_cache(tmp_path, shape=(257, 768))
    cache.put("a", "h", torch.randn(257, 768))
    start = time.perf_counter()
    for _ in range(20):
        cache.get("a")
    assert (time.perf_counter() - start) / 20 < 0.02


def test_an_image_hash_depends_on_content_alone(tmp_path):
    for name, content in (("a", b"1"), ("b", b"2"), ("c", b"1")):
        (tmp_path / name).write_bytes(content)
    a, b, c = hash_images([tmp_path / name for name in "abc"])
    assert a == c != b
    (tmp_path / "a").write_bytes(b"3")
    assert hash_images([tmp_path / "a"]) != [a]
