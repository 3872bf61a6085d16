"""On the mini world the method does what it should: learned prompts beat the words that they start from."""

import pytest
import torch
from torch.utils.data import DataLoader

from config import load_config
from dataset.pair_dataset import collate
from engine.build import build_accelerator, build_method, build_pairs
from engine.evaluate import evaluate
from engine.precompute import build_caches
from mini.baselines import forget_weights
from mini.render.write import install
from utils.noise import noise_seeds
from utils.pck import summarise

pytestmark = [pytest.mark.usefixtures("fresh_accelerator"), pytest.mark.slow]
SPLITS = {"trn": 24, "val": 10, "test": 2}
PAIRS = {"trn": 60, "val": 40, "test": 1}
WORDS = "text:a photo of a dog"


@pytest.fixture(scope="module")
def dogs(tmp_path_factory):
    """Settings for the mini world with a small benchmark of one category."""
    root = tmp_path_factory.mktemp("dogs")
    install(root / "data", "spair", images=SPLITS, pairs=PAIRS, categories=("dog",))
    more = {"DATASET.ROOT": str(root / "data"), "OUTPUT_ROOT": str(root / "out"), "PROMPT.KIND": "Single"}
    return load_config("config/mini/base.yaml", [], {**more, "PROMPT.SPACE": "HiddenState", "PROMPT.INIT": WORDS})


@pytest.fixture
def setup(dogs):
    accelerator, trn, val = build_accelerator(dogs), build_pairs(dogs, "trn"), build_pairs(dogs, "val")
    method = build_method(dogs, accelerator.device, trn.benchmark.categories, training=True)
    build_caches(dogs, (trn, val), method, accelerator)
    return trn, val, method


def mean_loss(method, pairs, epoch=0):
    """The loss over all pairs, one batch at a time, as a generator of tensors."""
    for batch in DataLoader(pairs, 10, collate_fn=collate):
        seeds = torch.stack([noise_seeds(0, epoch, batch["index"], side) for side in (0, 1)], dim=1)
        yield method.loss(batch, seeds).mean()


def held_out(method, val):
    with torch.no_grad():
        return torch.stack(list(mean_loss(method, val))).mean().item()


def test_a_learned_prompt_beats_its_words_on_unseen_instances(dogs, setup):
    trn, val, method = setup
    before = held_out(method, val)
    optimizer = method.build_optimizer(0.05, 0.1)
    for epoch in range(5):
        for loss in mean_loss(method, trn, epoch):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert held_out(method, val) < before - 0.02


def test_pretrained_features_beat_random_weights(dogs, setup):
    _, val, method = setup

    def score():
        records = evaluate(dogs, method, val, torch.device("cpu"))
        return summarise(records, ("nn",), (0.15,))["pck"]["nn"]["0.15"]["all"]

    pretrained = score()
    forget_weights(method.diffusion.unet, seed=0)
    assert pretrained > score() + 0.05
