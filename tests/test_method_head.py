"""A method in one file: a 1 x 1 convolution learned on cached DINOv2 maps, with its own loss and optimiser.

train.py and test.py drive it unchanged, by the line that is added to METHODS.
"""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import train as train_script
from config import ConfigError, load_config
from engine.check import check_config
from model.method import METHODS, Entry
from model.method.base import FeatureMethod
from tests.command import run_test
from tests.tiny import build_tiny_dinov2
from utils.checkpoint import CheckpointError
from utils.geometry import px_to_cell, sample_features
from utils.store import read_tensors, write_tensors

WIDTH, TAU = 8, 0.1
pytestmark = pytest.mark.usefixtures("fresh_accelerator", "head")


class Head(FeatureMethod):
    """Features = conv(DINOv2); loss = InfoNCE between the keypoints of the two images."""

    reads = ("dino",)

    def __init__(self, image_size, channels):
        super().__init__()
        self.image_size = image_size
        self.conv = nn.Conv2d(channels, WIDTH, 1)

    @classmethod
    def build(cls, cfg, device, categories, training, folder=None):
        from model.backbone.facts import dino_facts
        from model.source import find_dino

        torch.manual_seed(cfg.SEED)
        return cls(cfg.DATASET.IMAGE_SIZE, dino_facts(**find_dino(cfg)).width).to(device)

    @property
    def trainable(self):
        return self.conv

    def build_optimizer(self, lr, linear_lr_scale):
        return torch.optim.SGD(self.conv.parameters(), lr=lr, momentum=0.9)

    def features(self, batch, seeds):
        return self.conv(batch["dino"].float())

    def loss(self, batch, seeds):
        maps = self.pair_features(batch, seeds)
        kps = batch["src_kps"], batch["trg_kps"]
        points = [
            F.normalize(sample_features(feat, px_to_cell(at, self.image_size, feat.shape[-2:])), dim=-1)
            for feat, at in zip(maps, kps, strict=True)
        ]
        logits = points[0] @ points[1].transpose(1, 2) / TAU  # (B, N, N)
        mask = batch["kps_mask"]
        logits = logits.masked_fill(~mask[:, None], -1e4)
        target = torch.arange(logits.shape[1], device=logits.device).expand(len(logits), -1)
        losses = F.cross_entropy(logits.transpose(1, 2), target, reduction="none") * mask
        return losses.sum(dim=1) / mask.sum(dim=1).clamp(min=1)


@pytest.fixture
def head(monkeypatch):
    monkeypatch.setitem(METHODS, "head", Entry("tests.test_method_head:Head", ("dino",), learns=True))


def settings(world, output, *more):
    dino = ("METHOD.DINO_FOLDER", str(world.root / "dino"), "METHOD.DINO_SIZE", "[56, 56]")
    return load_config(None, world.opts(output, "METHOD.NAME", "head", *dino, "TRAIN.LR", "0.5", *more))


def train(world, output, *more):
    cfg = check_config(settings(world, output, *more), training=True)
    assert train_script.train(cfg, overwrite=False) == 0
    return output / "prompt" / "head_spair_tiny"


def score(world, output, *more):
    return run_test(settings(world, output, *more))[0]


def test_train_py_learns_it_and_test_py_reports_it(world, tmp_path):
    folder = train(world, tmp_path, "TRAIN.EPOCHS", "20")
    assert (folder / "weights.safetensors").is_file()
    learned = score(world, tmp_path, "METHOD.WEIGHTS", folder.name)["summary"]
    untrained = score(world, tmp_path)["summary"]
    assert learned["pairs"] == untrained["pairs"] == 4 and learned["pck"] != untrained["pck"]
    losses = [json.loads(line) for line in (tmp_path / "log/spair/head_spair_tiny_constant_lr0.5/metrics.jsonl").open()]
    assert len(losses) == 20


def test_its_loss_falls_and_its_resume_is_exact(world, tmp_path):
    whole = train(world, tmp_path / "whole", "TRAIN.EPOCHS", "4")
    for steps in ("3", "7"):
        train(world, tmp_path / "parts", "TRAIN.EPOCHS", "4", "TRAIN.MAX_STEPS", steps)
    parts = train(world, tmp_path / "parts", "TRAIN.EPOCHS", "4")
    from engine.build import build_method

    def state(folder):
        method = build_method(settings(world, folder.parents[1], "METHOD.WEIGHTS", folder.name), "cpu", None)
        return method.conv.state_dict()

    for key, value in state(whole).items():
        assert torch.equal(state(parts)[key], value), key


def test_its_weights_run_only_on_what_they_were_trained_on(world, tmp_path):
    folder = train(world, tmp_path, "TRAIN.MAX_STEPS", "1")
    with pytest.raises(ConfigError, match="was trained under other settings: METHOD.DINO_LAYER: -1 -> 0; set them so"):
        score(world, tmp_path, "METHOD.WEIGHTS", folder.name, "METHOD.DINO_LAYER", "0")
    build_tiny_dinov2(tmp_path / "dino", seed=5)
    with pytest.raises(ConfigError, match="was trained under other settings: dino: fingerprint"):
        score(world, tmp_path, "METHOD.WEIGHTS", folder.name, "METHOD.DINO_FOLDER", str(tmp_path / "dino"))
    with pytest.raises(CheckpointError, match="TRAIN.LR: 0.5 -> 0.25"):
        train(world, tmp_path, "TRAIN.MAX_STEPS", "1", "TRAIN.LR", "0.25")


def test_it_starts_from_weights_of_another_data_set(world, tmp_path):
    """And goes on only if they are still the same."""
    start = train(world, tmp_path, "DATASET.NAME", "pfpascal", "TRAIN.MAX_STEPS", "1").with_name("head_pfpascal_tiny")
    more = ("TRAIN.MAX_STEPS", "1", "TRAIN.LR", "1e-12", "TRAIN.START", start.name)
    folder = train(world, tmp_path, *more).with_name("head_spair_tiny_from_head_pfpascal_tiny")
    before, after = (read_tensors(place / "weights.safetensors")[0] for place in (start, folder))
    assert all(torch.allclose(value, after[name], atol=1e-6) for name, value in before.items())
    train(world, tmp_path, *more)
    tensors, about = read_tensors(start / "weights.safetensors")
    write_tensors(start / "weights.safetensors", {name: value + 1 for name, value in tensors.items()}, about)
    with pytest.raises(CheckpointError, match="TRAIN.START: '[0-9a-f]+' -> '[0-9a-f]+'"):
        train(world, tmp_path, *more)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("TRAIN.START", "nowhere"), "prompt/nowhere holds no weights: learn them first"),
        (("TRAIN.START", "../x"), "a name below OUTPUT_ROOT/prompt"),
        (("TRAIN.START", "x", "METHOD.NAME", "sd4match"), "which learns a prompt"),
        (("METHOD.DINO_LAYER", "0", "TRAIN.START", "head_spair_tiny"), "was trained under other settings: METHOD.DINO"),
    ],
)
def test_a_start_that_cannot_be_is_refused(world, tmp_path, more, told):
    train(world, tmp_path, "TRAIN.MAX_STEPS", "1")
    with pytest.raises(ConfigError, match=told):
        train(world, tmp_path, "DATASET.NAME", "pfpascal", *more)
