"""Batches that threads read ahead: the same in every case, and an answer when none comes."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from torch.utils.data import Dataset

import engine.transfer
from config import ROOT
from dataset import DatasetError, build_benchmark
from dataset.pair_dataset import PairDataset
from engine.process import StopRequest
from engine.transfer import Loader, LoaderError, build_loader, move_batch
from tests.fixtures_dataset import tiny_spair


class Numbers(Dataset):
    """Items that can be made to fail or to wait."""

    def __init__(self, n=50, fail_at=None, error=None, wait_at=None):
        self.n, self.fail_at, self.error, self.wait_at, self.go_on = n, fail_at, error, wait_at, threading.Event()

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        if index == self.fail_at:
            raise self.error
        if index == self.wait_at:
            self.go_on.wait(60)
        return {"index": index, "value": torch.full((3,), float(index))}


@pytest.fixture
def stuck():
    numbers = Numbers(wait_at=7)
    yield numbers
    numbers.go_on.set()


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_the_same_batches_for_any_number_of_threads(num_workers):
    loader = build_loader(Numbers(10), num_workers, batch_size=4)
    for _ in range(2):
        assert [batch["index"].tolist() for batch in loader] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    chosen = build_loader(Numbers(10), num_workers, batches=[[3, 1], [9]])
    assert [batch["value"][:, 0].tolist() for batch in chosen] == [[3, 1], [9]]


def test_pairs_with_images(tmp_path):
    pairs = PairDataset(build_benchmark("spair", tiny_spair(tmp_path), "trn"), 32, with_images=True)
    plain, threads = (list(build_loader(pairs, workers, batch_size=4)) for workers in (0, 2))
    assert all(torch.equal(a["src_img"], b["src_img"]) for a, b in zip(plain, threads, strict=True))
    assert move_batch(plain[0], torch.device("meta"))["flags"]["mirror"].is_meta


@pytest.mark.parametrize("error", [DatasetError("a.json: key 'x' is missing"), TimeoutError(110, "timed out", "a.pt")])
def test_an_error_comes_as_it_was_raised(error):
    with pytest.raises(type(error)) as caught:
        list(build_loader(Numbers(fail_at=9, error=error), 2, batch_size=4))
    assert caught.value is error and len(str(error).splitlines()) == 1


def test_a_batch_that_does_not_come_is_told(stuck):
    start = time.monotonic()
    with pytest.raises(LoaderError, match="no batch came for 0.3 s: .* does not answer. DATASET.NUM_WORKERS 0"):
        list(Loader(stuck, [[7]], num_workers=2, patience=0.3))
    assert time.monotonic() - start < 5


def test_sigterm_is_heard_while_waiting(stuck, monkeypatch, capsys):
    monkeypatch.setattr(engine.transfer, "GRACE", 0)
    with StopRequest().listening():
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        with pytest.raises(SystemExit) as caught:
            list(build_loader(stuck, 1, batch_size=4))
    assert caught.value.code == 128 + signal.SIGTERM and StopRequest.heard() is None


@pytest.fixture
def ctrl_c():
    """A suite in the background inherits an ignored Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_is_heard_while_waiting(stuck, ctrl_c):
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(build_loader(stuck, 1, batch_size=4))
    assert time.monotonic() - start < 5


def test_batches_need_neither_descriptors_nor_shared_memory():
    """Two hundred batches are held where a process may open sixty files and shared memory has no room."""
    code = """
import os, resource, torch
from engine.transfer import build_loader
from tests.test_loader import Numbers
resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 8,) * 2)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # as if /dev/shm were full
print(len(list(build_loader(Numbers(800), 2, batch_size=4))))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.stdout.strip() == "200", done.stderr
