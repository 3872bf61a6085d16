"""Every kind of prompt can learn: the loss falls on one pair with fixed noise."""

import pytest
import torch

from config import load_config
from dataset.pair_dataset import collate
from engine.build import build_accelerator, build_method, build_pairs
from engine.precompute import build_caches

pytestmark = pytest.mark.usefixtures("fresh_accelerator")
CPMS = [
    f"{scope}-{network}-{feature}-G{count}-C4"
    for scope in ("Img", "Pair")
    for network in ("DINO", "CLIP")
    for feature in ("Feat", "Head")
    for count in (0, 3)
]
SIMPLE = [(method, space, init) for method in ("Single", "Class") for space in ("TokenEmbeds", "HiddenState")
          for init in ("random", "empty", "text:a cat")]  # fmt: skip


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("overfit")


def overfit(world, output, *more, steps=12):
    """(first, last) loss of some Adam steps on one pair."""
    cfg = load_config(None, world.opts(output, *more))
    accelerator, pairs = build_accelerator(cfg), build_pairs(cfg, "trn")
    method = build_method(cfg, accelerator.device, pairs.benchmark.categories, training=True)
    build_caches(cfg, (pairs,), method, accelerator)
    optimizer = method.build_optimizer(0.05, 0.1)
    batch, seeds = collate([pairs[0]]), torch.tensor([[1, 2]])
    losses = []
    for _ in range(steps):
        loss = method.loss(batch, seeds).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


@pytest.mark.parametrize("variant", CPMS)
def test_cpm_lowers_the_loss(world, output, variant):
    first, last = overfit(world, output, "PROMPT.CPM", variant)
    assert last < 0.99 * first


@pytest.mark.parametrize(("method", "space", "init"), SIMPLE)
def test_single_and_class_lower_the_loss(world, output, method, space, init):
    more = ["PROMPT.KIND", method, "PROMPT.SPACE", space, "PROMPT.INIT", init, "PROMPT.LENGTH", "8"]
    first, last = overfit(world, output, *more)
    assert last < 0.99 * first
