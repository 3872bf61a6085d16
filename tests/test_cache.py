"""The feature cache: random access, resuming after any interruption, several writers, damage."""

import json

import pytest
import torch

from utils.cache import CacheError, FeatureCache, fill_cache, hash_file

STAMP = {"network": "abc", "image_size": [96, 96]}
NAMES = [f"cat-{i}" for i in range(7)]
HASHES = {name: f"h{name}" for name in NAMES}
VALUES = {name: torch.full((2, 3), i + 0.5) for i, name in enumerate(NAMES)}


def open_cache(folder, stamp=STAMP):
    return FeatureCache(folder, stamp, (2, 3))


def fill(folder, rank=0, world=1, limit=None, stamp=STAMP, calls=None):
    cache = open_cache(folder, stamp)
    missing = cache.missing(HASHES.items())[rank::world]

    def compute(identifiers):
        if calls is not None:
            calls.extend(identifiers)
        return torch.stack([VALUES[name] for name in identifiers])

    fill_cache(cache, HASHES, compute, missing=missing[:limit], batch_size=2, rank=rank)
    return open_cache(folder, stamp)


def assert_complete(cache):
    assert cache.missing(HASHES.items()) == []
    for name in NAMES:
        assert torch.equal(cache.get(name), VALUES[name].half())


def test_values_come_back_in_half_precision(tmp_path):
    cache = fill(tmp_path)
    assert_complete(cache)
    assert "cat-3" in cache and "cat-9" not in cache and len(cache) == 7


def test_unfinished_build_goes_on_without_double_work(tmp_path):
    fill(tmp_path, limit=3)
    calls = []
    assert_complete(fill(tmp_path, calls=calls))
    assert calls == NAMES[3:]


def test_two_processes_share_the_work(tmp_path):
    calls = []
    fill(tmp_path, rank=0, world=2, limit=2, calls=calls)
    cache = open_cache(tmp_path)
    missing = cache.missing(HASHES.items())
    for rank in (0, 1):  # as two processes that looked before either wrote
        fill_cache(
            open_cache(tmp_path),
            HASHES,
            lambda names: torch.stack([VALUES[name] for name in names]),
            missing=missing[rank::2],
            batch_size=2,
            rank=rank,
        )
    assert_complete(open_cache(tmp_path))
    rows = [json.loads(line) for path in tmp_path.glob("*.rows") for line in path.read_text().splitlines()]
    assert len(rows) == 7


def test_a_run_that_waited_for_another_takes_what_that_has_written(tmp_path):
    waiting, calls = open_cache(tmp_path), []
    missing = waiting.missing(HASHES.items())
    fill(tmp_path, limit=5)

    def compute(names):
        calls.extend(names)
        return torch.stack([VALUES[name] for name in names])

    fill_cache(waiting, HASHES, compute, missing=missing, batch_size=4)
    assert calls == NAMES[5:]
    assert_complete(open_cache(tmp_path))


@pytest.mark.parametrize("cut", [1, 13, 40])
def test_torn_data_file_costs_only_the_torn_rows(tmp_path, cut):
    fill(tmp_path)
    (data,) = tmp_path.glob("*.bin")
    content = data.read_bytes()
    data.write_bytes(content[:-cut])
    torn = -(-cut // 12)
    assert len(open_cache(tmp_path).missing(HASHES.items())) == torn
    calls = []
    assert_complete(fill(tmp_path, calls=calls))
    assert len(calls) == torn


def test_torn_last_line_is_ignored_and_repaired(tmp_path):
    fill(tmp_path)
    (rows,) = tmp_path.glob("*.rows")
    rows.write_text(rows.read_text()[:-9])
    assert open_cache(tmp_path).missing(HASHES.items()) == ["cat-6"]
    assert_complete(fill(tmp_path))


def test_flipped_byte_is_detected_when_read_and_rebuilt(tmp_path):
    fill(tmp_path)
    (data,) = tmp_path.glob("*.bin")
    content = bytearray(data.read_bytes())
    content[12 * 2 + 5] ^= 1
    data.write_bytes(content)
    cache = open_cache(tmp_path)
    with pytest.raises(CacheError, match="cat-2 is damaged"):
        cache.get("cat-2")
    assert_complete(fill(tmp_path))


def test_changed_image_is_computed_again(tmp_path):
    fill(tmp_path)
    changed = {**HASHES, "cat-4": "other"}
    assert open_cache(tmp_path).missing(changed.items()) == ["cat-4"]


def test_newer_row_counts_whichever_process_wrote_it(tmp_path):
    """An image cached by process 1, then changed and cached again by a run of one process."""
    fill(tmp_path, rank=1)
    new = torch.full((2, 3), 9.0)
    cache = open_cache(tmp_path)
    fill_cache(cache, {"cat-4": "other"}, lambda names: new[None], ["cat-4"], 2, rank=0)
    cache = open_cache(tmp_path)
    assert torch.equal(cache.get("cat-4"), new.half()) and cache.missing([("cat-4", "other")]) == []


def test_other_settings_never_share_files(tmp_path):
    fill(tmp_path)
    other = open_cache(tmp_path, {**STAMP, "network": "xyz"})
    assert len(other) == 0 and other.stem != open_cache(tmp_path).stem
    assert json.loads((tmp_path / f"{open_cache(tmp_path).stem}.json").read_text())["network"] == "abc"


def test_missing_entry_and_wrong_shape_are_named(tmp_path):
    cache = fill(tmp_path)
    with pytest.raises(CacheError, match="no entry for image dog-1"):
        cache.get("dog-1")
    with pytest.raises(CacheError, match=r"expected an array of shape \(2, 3\)"), cache.writer() as write:
        write("dog-1", "h", torch.zeros(3, 2))
    with pytest.raises(CacheError, match="half precision"), cache.writer() as write:
        write("dog-1", "h", torch.full((2, 3), 1e6))


def test_hash_depends_on_content(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"2")
    assert hash_file(tmp_path / "a") != hash_file(tmp_path / "b")
