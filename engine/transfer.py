"""Batches from the disk to the device."""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dataset.pair_dataset import collate
from engine.process import StopRequest
from utils.error import UserError

AHEAD = 2  # batches that each thread reads ahead
PATIENCE = 300.0  # seconds to wait for a batch
GRACE = 5  # seconds in which a batch may still come after a signal


class LoaderError(UserError, RuntimeError):
    """A batch that does not come."""


class Loader:
    """Batches of `collate`, in order, each time it is iterated; see `build_loader`.

    Threads read them, not processes: reading is files and copies, which do not hold Python's lock, and threads need
    no shared memory, no file descriptors and no signals of their own.
    """

    def __init__(
        self, dataset: Dataset, batches: Iterable[Sequence[int]], num_workers: int = 0, patience: float = PATIENCE
    ) -> None:
        self.dataset, self.batches, self.num_workers, self.patience = dataset, batches, num_workers, patience

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if not self.num_workers:
            yield from map(self._read, self.batches)
            return
        pool, waiting = ThreadPoolExecutor(self.num_workers), deque()
        try:
            for positions in self.batches:
                waiting.append(pool.submit(self._read, positions))
                if len(waiting) > AHEAD * self.num_workers:
                    yield self._wait(waiting.popleft())
            while waiting:
                yield self._wait(waiting.popleft())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _read(self, positions: Sequence[int]) -> dict[str, Any]:
        return collate([self.dataset[position] for position in positions])

    def _wait(self, batch: Future) -> dict[str, Any]:
        """The batch; LoaderError after `patience`, SystemExit if a signal asks to stop meanwhile."""
        for second in range(math.ceil(self.patience)):
            try:
                return batch.result(timeout=min(1.0, self.patience))
            except TimeoutError:
                if batch.done():  # the disk's error, not the wait's
                    return batch.result()
            if second >= GRACE and StopRequest.heard():
                raise SystemExit(128 + StopRequest.heard())
        raise LoaderError(
            f"no batch came for {self.patience:g} s: the disk of the data set or of the caches does not answer. "
            "DATASET.NUM_WORKERS 0 reads without threads and shows where it stops"
        )


def build_loader(
    dataset: Dataset,
    num_workers: int = 0,
    batch_size: int = 1,
    batches: Iterable[Sequence[int]] | None = None,  # positions in the data set; default: all, `batch_size` at a time
) -> Loader:
    """Batches read by `num_workers` threads ahead of time, 0 = when they are asked for; the same for any number."""
    if batches is None:
        n = len(dataset)
        batches = [range(first, min(first + batch_size, n)) for first in range(0, n, batch_size)]
    return Loader(dataset, batches, num_workers)


def move_batch(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch with every tensor (also inside nested dicts) on the device."""
    moved = {}
    for key, value in batch.items():
        if isinstance(value, dict):
            value = move_batch(value, device)
        elif isinstance(value, Tensor):
            value = value.to(device, non_blocking=True)
        moved[key] = value
    return moved
