"""Files of ours: whole or not there, checked when read, finite, nothing left behind."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import save_file

from config import ROOT
from utils import store
from utils.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from utils.store import StoreError, atomic_path, file_digest, read_json, read_tensors, write_json, write_tensors

CONTENT = {"name": "Größe", "values": [1, 2.5, 1e-300, None, True], "nested": {"7": "x"}}
TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, -2]), "step": torch.tensor(3.0)}
STATE = {
    "learner": {
        "prompt": {"tokens": torch.randn(2, 3)},
        "optimizer": {
            "state": {0: {"exp_avg": torch.randn(2, 3), "step": torch.tensor(4.0)}},
            "param_groups": [{"lr": 0.01, "betas": (0.9, 0.999), "params": [0], "foreach": None}],
        },
        "counters": {"step": 4, "best": 0.1 + 0.2},
    },
    "settings": {"DATASET.IMAGE_SIZE": (32, 32)},
}


def flips(content, count, seed=0):
    """Copies of the bytes with one bit changed."""
    draw = random.Random(seed)
    for _ in range(count):
        changed = bytearray(content)
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
        yield bytes(changed)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def test_json_comes_back_as_it_was_and_holds_its_digest(tmp_path):
    write_json(tmp_path / "a.json", CONTENT)
    assert read_json(tmp_path / "a.json") == CONTENT
    assert re.fullmatch("[0-9a-f]{32}", json.loads((tmp_path / "a.json").read_text())["digest"])


def test_no_flipped_bit_of_a_json_file_changes_what_is_read(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, CONTENT)
    noticed = 0
    for content in flips(path.read_bytes(), 400):
        path.write_bytes(content)
        try:
            found = read_json(path)
        except StoreError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            noticed += 1
        else:
            assert {key: found[key] for key in CONTENT} == CONTENT
    assert noticed > 360  # the others changed the word "digest" or the space between lines


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", "3", '{"a": NaN}', '{"a": 1e999}', "[" * 10_000, '{"a": Infinity}', "\ufeff{}", "\x00"]
)
def test_damaged_json_is_one_line_with_the_remedy(tmp_path, text):
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    with pytest.raises(KeyError, match=r"a\.json is corrupt \(.*\); do this"):
        read_json(tmp_path / "a.json", KeyError, "do this")


def test_json_of_others_needs_no_digest_and_nothing_infinite_is_written(tmp_path):
    (tmp_path / "a.json").write_text('{"hidden_size": 768}')
    assert read_json(tmp_path / "a.json") == {"hidden_size": 768}
    with pytest.raises(StoreError, match=r"a\.json was not written: .* not finite"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert read_json(tmp_path / "a.json") == {"hidden_size": 768}


def test_changing_our_json_by_hand_is_told_how(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"layer": 1})
    path.write_text(path.read_text().replace("1,", "2,"))
    with pytest.raises(StoreError, match="changed it on purpose, remove its entry 'digest'"):
        read_json(path)
    path.write_text('{"layer": 2}')
    assert read_json(path) == {"layer": 2}


def test_tensors_come_back_with_what_is_said_of_them(tmp_path):
    write_tensors(tmp_path / "a.safetensors", TENSORS, CONTENT)
    tensors, meta = read_tensors(tmp_path / "a.safetensors")
    assert meta == CONTENT and all(same(TENSORS[name], tensors[name]) for name in TENSORS)


def test_every_flipped_bit_and_every_cut_of_a_tensor_file_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, TENSORS, CONTENT)
    whole = path.read_bytes()
    draw, unnoticed = random.Random(1), 0
    for content in [b"", *flips(whole, 600), *(whole[: draw.randrange(len(whole))] for _ in range(100))]:
        path.write_bytes(content)
        try:
            tensors, meta = read_tensors(path, CheckpointError, "do this")
        except CheckpointError as error:
            assert re.fullmatch(r".*a\.safetensors is corrupt \(.*\); do this", str(error))
        else:  # such as 1E-300 for 1e-300
            assert meta == CONTENT and all(same(TENSORS[name], tensors[name]) for name in TENSORS)
            unnoticed += 1
    assert unnoticed < 5


def test_values_that_are_not_finite_are_neither_written_nor_read(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, TENSORS)
    for value in (float("nan"), float("inf")):
        with pytest.raises(StoreError, match=r"a\.safetensors was not written: b is not finite"):
            write_tensors(path, {"a": torch.ones(2), "b": torch.tensor([0.0, value])})
    assert same(TENSORS["a"], read_tensors(path)[0]["a"])
    save_file({"w": torch.full((2,), float("nan"))}, path)
    with pytest.raises(StoreError, match="w is not finite"):
        read_tensors(path)


def test_tensors_of_others_are_read_without_digest(tmp_path):
    save_file(TENSORS, tmp_path / "a.safetensors", {"format": "pt"})
    tensors, meta = read_tensors(tmp_path / "a.safetensors")
    assert meta == {} and same(TENSORS["b"], tensors["b"])


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a"]


def test_a_full_disk_is_told_with_the_name_of_the_file(tmp_path):
    with (
        pytest.raises(OSError, match=r"No space left on device: .*a\.json") as caught,
        atomic_path(tmp_path / "a.json"),
    ):
        raise OSError(28, os.strerror(28))
    assert caught.value.errno == 28 and not os.listdir(tmp_path)


KILLED = """
import os, signal, sys
from utils.store import atomic_path
with atomic_path(sys.argv[1]) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_removed_a_day_later(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "a")], cwd=ROOT)
    (left,) = tmp_path.iterdir()
    assert done.returncode == -signal.SIGKILL
    new, other = tmp_path / ".0123456789abcdef.tmp", tmp_path / ".notes.tmp"  # perhaps being written; nobody's
    for path in (left, new, other):
        path.touch()
    os.utime(left, (0, 0))
    os.utime(other, (0, 0))
    store.write_text(tmp_path / "a", "whole")
    assert set(tmp_path.iterdir()) == {tmp_path / "a", new, other}


def test_two_processes_that_write_one_file_leave_one_whole_file(tmp_path):
    code = "import sys, torch; from utils.store import write_tensors\n"
    code += "for i in range(60): write_tensors(sys.argv[1], {'a': torch.full((999,), float(sys.argv[2]))})"
    path = tmp_path / "a.safetensors"
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), n], cwd=ROOT) for n in "12"]
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            assert len(set(read_tensors(path)[0]["a"].tolist())) == 1
    assert [writer.returncode for writer in writers] == [0, 0] and os.listdir(tmp_path) == ["a.safetensors"]


# ---- hashes of files -------------------------------------------------------------------------------------


@pytest.fixture
def remembering(tmp_path, monkeypatch):
    """Hashes of all files are kept, in a folder of this test; each call is as from a new process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(store, "REMEMBERED", 1)
    read = []
    original = store.hashlib.file_digest
    monkeypatch.setattr(store.hashlib, "file_digest", lambda *args: read.append(args) or original(*args))

    def call(path):
        store._hash_file.cache_clear()
        return file_digest(path)

    return call, read


def test_a_hash_covers_the_middle_of_a_file(tmp_path):
    path = tmp_path / "weights"
    content = bytearray(5 << 20)
    path.write_bytes(content)
    before = file_digest(path)
    content[len(content) // 2] = 1
    path.write_bytes(content)
    assert file_digest(path) != before and len(before) == 64


def test_a_large_file_is_read_again_only_if_it_has_changed(tmp_path, remembering):
    call, read = remembering
    path = tmp_path / "weights"
    path.write_bytes(b"1")
    os.utime(path, (time.time() - 100,) * 2)
    first = call(path)
    assert call(path) == first and len(read) == 1
    path.write_bytes(b"2")
    os.utime(path, (time.time() - 100,) * 2)  # as old and as large as before
    assert call(path) != first and len(read) == 2
    (note,) = (tmp_path / "home").rglob("*.json")
    note.write_bytes(note.read_bytes()[:-20])
    call(path)
    assert len(read) == 3


def test_the_hash_of_a_file_that_is_still_being_written_is_not_kept(tmp_path, remembering):
    call, read = remembering
    path = tmp_path / "weights"
    path.write_bytes(b"1")
    call(path), call(path)
    assert len(read) == 2


# ---- checkpoints -----------------------------------------------------------------------------------------


def test_a_checkpoint_comes_back_exactly(tmp_path):
    assert load_checkpoint(tmp_path) is None
    save_checkpoint(tmp_path, STATE)
    assert same(load_checkpoint(tmp_path), STATE)


def test_a_resumed_optimiser_goes_on_bit_for_bit(tmp_path):
    torch.manual_seed(0)
    targets = torch.randn(6, 3)

    def steps(parameter, optimizer, rows):
        for row in rows:
            optimizer.zero_grad()
            (parameter - row).square().sum().backward()
            optimizer.step()

    whole, first, second = (torch.nn.Parameter(torch.zeros(3)) for _ in range(3))
    steps(whole, torch.optim.Adam([whole]), targets)
    optimizer = torch.optim.Adam([first])
    steps(first, optimizer, targets[:3])
    save_checkpoint(tmp_path, {"p": first, "optimizer": optimizer.state_dict()})
    state, optimizer = load_checkpoint(tmp_path), torch.optim.Adam([second])
    second.data.copy_(state["p"])
    optimizer.load_state_dict(state["optimizer"])
    steps(second, optimizer, targets[3:])
    assert torch.equal(whole, second)


def test_every_flipped_bit_of_a_checkpoint_is_refused(tmp_path):
    save_checkpoint(tmp_path, STATE)
    (path,) = tmp_path.iterdir()
    for content in flips(path.read_bytes(), 300):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="state.safetensors is corrupt .*--overwrite"):
            load_checkpoint(tmp_path)


def test_the_last_good_state_outlives_values_that_are_not_finite(tmp_path):
    save_checkpoint(tmp_path, STATE)
    bad = {"learner": {"optimizer": {"state": {0: {"exp_avg": torch.tensor([float("nan")])}}}}}
    with pytest.raises(CheckpointError, match=r"learner.optimizer.state.0.exp_avg is not finite.*good state is kept"):
        save_checkpoint(tmp_path, bad)
    with pytest.raises(CheckpointError, match="good state is kept"):
        save_checkpoint(tmp_path, {"best": float("inf")})
    assert same(load_checkpoint(tmp_path), STATE)


def test_a_foreign_file_in_its_place_is_refused(tmp_path):
    for content in ({"w": torch.ones(2)}, {}):
        save_file(content, tmp_path / "state.safetensors")
        with pytest.raises(CheckpointError, match="holds no training state; start anew with --overwrite"):
            load_checkpoint(tmp_path)
    write_tensors(tmp_path / "state.safetensors", {}, {"tree": {"dict": [["a", {"tensor": "gone"}]]}})
    with pytest.raises(CheckpointError, match="holds no training state"):
        load_checkpoint(tmp_path)


def test_what_no_file_can_hold_is_a_bug(tmp_path):
    with pytest.raises(TypeError, match="state.a is a set"):
        save_checkpoint(tmp_path, {"a": {1}})
