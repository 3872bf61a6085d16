"""The order of training pairs does not depend on processes, parts or interruptions."""

import pytest
import torch

from engine.sampler import EpochBatches


def steps(batches):
    """The pairs of each optimiser step, over all processes and parts."""
    parts = [list(b) for b in batches]
    count, accumulation = len(parts[0]), batches[0].accumulation
    return [
        sorted(i for rank in parts for part in rank[s : s + accumulation] for i in part)
        for s in range(0, count, accumulation)
    ]


def make(world=1, accumulation=1, epoch=0, first_step=0, seed=0):
    batches = [EpochBatches(26, 8, seed, accumulation, rank, world) for rank in range(world)]
    for one in batches:
        one.start(epoch, first_step)
    return batches


@pytest.mark.parametrize(("world", "accumulation"), [(1, 1), (2, 1), (4, 1), (1, 4), (2, 2), (3, 1), (5, 1), (3, 2)])
def test_a_step_sees_the_same_pairs_for_any_number_of_processes_and_parts(world, accumulation):
    assert steps(make(world, accumulation)) == steps(make())
    assert all(len(one) == 3 * accumulation for one in make(world, accumulation))
    sizes = {len(share) for one in make(world, accumulation) for share in one}
    assert max(sizes) - min(sizes) <= 1 and min(sizes) > 0


def test_weighted_mean_over_unequal_shares_is_the_mean_over_the_batch():
    losses = torch.arange(26.0)
    batches = make(3, 2)
    shares = [[losses[share].sum() * one.weight for share in one] for one in batches]  # (process, step and part)
    mean = torch.tensor(shares).unflatten(1, (3, 2)).mean(dim=(0, 2))  # as DDP and accumulation average
    (whole,) = make()
    torch.testing.assert_close(mean, torch.stack([losses[step].mean() for step in whole]))


def test_no_pair_twice_in_an_epoch_and_epochs_differ():
    flat = [i for step in steps(make()) for i in step]
    assert len(flat) == len(set(flat)) == 24
    assert steps(make(epoch=1)) != steps(make()) != steps(make(seed=1))


def test_starting_in_the_middle_gives_the_rest():
    (full,), (rest,) = make(), make(first_step=2)
    assert list(rest) == list(full)[2:] and len(rest) == 1


def test_impossible_batches_are_refused():
    with pytest.raises(ValueError, match="smaller than processes x TRAIN.ACCUMULATION = 3 x 4"):
        EpochBatches(26, 8, 0, 4, 0, 3)
    with pytest.raises(ValueError, match="larger than the 4 training pairs"):
        EpochBatches(4, 8, 0)
