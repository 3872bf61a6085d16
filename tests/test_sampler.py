"""The order of training pairs does not depend on processes, parts or interruptions."""

from types import SimpleNamespace

import pytest
import torch

from engine.evaluate import share_positions
from engine.sampler import StepBatches


def steps(batches):
    """The (epoch, pair) items of each optimiser step, over all processes and parts."""
    parts = [list(b) for b in batches]
    count, accumulation = len(parts[0]), batches[0].accumulation
    return [
        sorted(item for rank in parts for part in rank[s : s + accumulation] for item in part)
        for s in range(0, count, accumulation)
    ]


def make(world=1, accumulation=1, seed=0, of=range(13)):
    """13 steps of 8 are four epochs of 26 pairs."""
    batches = [StepBatches(26, 8, seed, accumulation, rank, world) for rank in range(world)]
    for one in batches:
        one.steps = of
    return batches


@pytest.mark.parametrize(("world", "accumulation"), [(1, 1), (2, 1), (4, 1), (1, 4), (2, 2), (3, 1), (5, 1), (3, 2)])
def test_a_step_sees_the_same_pairs_for_any_number_of_processes_and_parts(world, accumulation):
    assert steps(make(world, accumulation)) == steps(make())
    assert all(len(list(one)) == 13 * accumulation for one in make(world, accumulation))
    sizes = {len(share) for one in make(world, accumulation) for share in one}
    assert max(sizes) - min(sizes) <= 1 and min(sizes) > 0


def test_weighted_mean_over_unequal_shares_is_the_mean_over_the_batch():
    losses = torch.arange(26.0)
    batches = make(3, 2)
    shares = [[losses[[pair for _, pair in share]].sum() * one.weight for share in one] for one in batches]
    mean = torch.tensor(shares).unflatten(1, (13, 2)).mean(dim=(0, 2))  # over processes and accumulated parts
    (whole,) = make()
    torch.testing.assert_close(mean, torch.stack([losses[[pair for _, pair in step]].mean() for step in whole]))


def test_every_pair_comes_once_in_every_epoch_none_is_left_over():
    items = [item for step in steps(make()) for item in step]
    assert sorted(items) == [(epoch, pair) for epoch in range(4) for pair in range(26)]
    order = [[pair for step in make(seed=seed)[0] for epoch, pair in step if epoch == 0] for seed in (0, 0, 1)]
    assert order[0] == order[1] != order[2] and order[0] != sorted(order[0])
    assert order[0] != [pair for step in make()[0] for epoch, pair in step if epoch == 1]


def test_epochs_end_with_their_last_whole_batch():
    batches = StepBatches(26, 8, 0)
    assert [batches.end_of_epoch(epoch) for epoch in range(4)] == [3, 6, 9, 13]


@pytest.mark.parametrize(("pairs", "size"), [(26, 8), (8, 8), (7, 2), (100, 3)])
def test_boundaries_are_the_ends_of_epochs_or_every_so_many_steps(pairs, size):
    batches = StepBatches(pairs, size, 0)
    ends = [0, *map(batches.end_of_epoch, range(20))]
    for position in range(ends[-1]):
        assert batches.next_boundary(position, 0) == min(end for end in ends if end >= position)
        assert batches.next_boundary(position, 4) == min(step for step in range(0, 999, 4) if step >= position)


def test_starting_in_the_middle_gives_the_rest():
    assert steps(make(of=range(5, 9))) == steps(make())[5:9]


def test_impossible_batches_are_refused():
    with pytest.raises(ValueError, match="smaller than processes x TRAIN.ACCUMULATION = 3 x 4"):
        StepBatches(26, 8, 0, 4, 0, 3)
    with pytest.raises(ValueError, match="larger than the 4 training pairs"):
        StepBatches(4, 8, 0)


def test_pairs_of_a_test_are_shared_out_each_once_and_by_category():
    benchmark = [SimpleNamespace(category=word) for word in "bacabcacba"]
    shares = [share_positions(SimpleNamespace(benchmark=benchmark), rank, 3) for rank in range(3)]
    assert sorted(position for share in shares for position in share) == list(range(10))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    order = [benchmark[position].category for share in shares for position in share]
    assert order == sorted(order)
