"""The order of training pairs: a function of the seed alone, whatever the number of processes or interruptions."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from torch.utils.data import Dataset

from config import ConfigError


class StepBatches:
    """Batch sampler: this process's part of every step's batch.

    The epochs' permutations, one after the other, are cut into batches of `batch_size`: a batch may take the last pairs
    of an epoch and the first of the next. A batch is cut into `accumulation` parts, each part into `world` shares as
    equal as can be; this process gets its share of every part. Items are those of `EpochPairs`.
    """

    def __init__(
        self,
        n_pairs: int,
        batch_size: int,
        seed: int,
        accumulation: int = 1,
        rank: int = 0,
        world: int = 1,
        reshuffle: bool = True,  # every epoch has its own order, else that of the first
    ):
        if batch_size < accumulation * world:
            raise ConfigError(
                f"TRAIN.BATCH_SIZE {batch_size} is smaller than processes x TRAIN.ACCUMULATION = "
                f"{world} x {accumulation}; change one of the three"
            )
        if n_pairs < batch_size:
            raise ConfigError(f"TRAIN.BATCH_SIZE {batch_size} is larger than the {n_pairs} training pairs there are")
        self.n_pairs, self.batch_size, self.seed = n_pairs, batch_size, seed
        self.accumulation, self.rank, self.world = accumulation, rank, world
        self.reshuffle = reshuffle
        # what a share's summed loss is multiplied with, so that the mean over shares is the mean over the batch
        self.weight = accumulation * world / batch_size
        self.steps = range(0)

    def end_of_epoch(self, epoch: int) -> int:
        """How many steps have begun before the epoch (from 0) has given its last whole batch."""
        return (epoch + 1) * self.n_pairs // self.batch_size

    def next_boundary(self, position: int, every: int) -> int:
        """The first multiple of `every` steps from this position on; every = 0: the first end of an epoch."""
        if every:
            return -(-position // every) * every
        return self.end_of_epoch(-(-position * self.batch_size // self.n_pairs) - 1)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        shares = self.accumulation * self.world
        for step in self.steps:
            pairs = [self._pair(position) for position in range(step * self.batch_size, (step + 1) * self.batch_size)]
            for part in range(self.accumulation):
                share = part * self.world + self.rank
                begin, end = (self.batch_size * number // shares for number in (share, share + 1))
                yield pairs[begin:end]

    def _pair(self, position: int) -> tuple[int, int]:
        epoch, place = divmod(position, self.n_pairs)
        return epoch, shuffle(self.n_pairs, self.seed, epoch * self.reshuffle)[place]


@lru_cache(maxsize=2)
def shuffle(n_pairs: int, seed: int, epoch: int) -> list[int]:
    """The order of an epoch's pairs."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(n_pairs, generator=generator).tolist()


class EpochPairs(Dataset):
    """The pairs of a data set by (epoch, position); their batches say the "epoch", (B,) int64."""

    def __init__(self, pairs: Dataset) -> None:
        self.pairs = pairs

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        epoch, position = item
        return {**self.pairs[position], "epoch": epoch}
