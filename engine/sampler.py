"""The order of training pairs: a function of seed and epoch alone, whatever the number of processes."""

from collections.abc import Iterator

import torch


class EpochBatches:
    """Batch sampler: this process's part of every optimiser step's batch.

    One step takes `batch_size` consecutive pairs of the epoch's permutation. They are cut into `accumulation` parts,
    each part into `world` shares as equal as can be; this process gets its share of every part. The pairs left over
    at the end of an epoch (fewer than batch_size) are skipped; the next epoch shuffles anew.
    """

    def __init__(self, n_pairs: int, batch_size: int, seed: int, accumulation: int = 1, rank: int = 0, world: int = 1):
        if batch_size < accumulation * world:
            raise ValueError(
                f"TRAIN.BATCH_SIZE {batch_size} is smaller than processes x TRAIN.ACCUMULATION = "
                f"{world} x {accumulation}; change one of the three"
            )
        if n_pairs < batch_size:
            raise ValueError(f"TRAIN.BATCH_SIZE {batch_size} is larger than the {n_pairs} training pairs there are")
        self.n_pairs, self.batch_size, self.seed = n_pairs, batch_size, seed
        self.accumulation, self.rank, self.world = accumulation, rank, world
        self.epoch, self.first_step = 0, 0

    @property
    def weight(self) -> float:
        """What a share's summed loss is multiplied with, so that the mean over shares is the mean over the batch."""
        return self.accumulation * self.world / self.batch_size

    @property
    def steps_per_epoch(self) -> int:
        return self.n_pairs // self.batch_size

    def start(self, epoch: int, first_step: int = 0) -> None:
        """Choose the epoch, and the optimiser step in it to begin at."""
        self.epoch, self.first_step = epoch, first_step

    def __len__(self) -> int:
        return (self.steps_per_epoch - self.first_step) * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.n_pairs, generator=generator).tolist()
        shares = self.accumulation * self.world
        for step in range(self.first_step, self.steps_per_epoch):
            for part in range(self.accumulation):
                share = part * self.world + self.rank
                begin, end = (self.batch_size * number // shares for number in (share, share + 1))
                yield order[step * self.batch_size + begin : step * self.batch_size + end]
