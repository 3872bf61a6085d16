"""A method in one file that works point by point: an attention map over the target for each query, and no feature map.

train.py and test.py drive it unchanged, by the line that is added to METHODS.
"""

import pytest
import torch
from einops import rearrange
from torch import nn

import train as train_script
from config import ConfigError, load_config
from engine.check import check_config
from model.method import METHODS, Entry
from model.method.base import Method
from tests.command import run_test
from utils.geometry import sample_features

WIDTH = 8
pytestmark = pytest.mark.usefixtures("fresh_accelerator", "points")


class AttentionSimilarity:
    """softmax(q k / sqrt(d)) of a query at a source point with the keys of all target cells."""

    def __init__(self, to_q, to_k, src, trg):
        self.to_q, self.keys, self.src = to_q, to_k(rearrange(trg, "b c h w -> b (h w) c")), src
        self.src_size, self.trg_size = tuple(src.shape[-2:]), tuple(trg.shape[-2:])

    def __call__(self, points_cell):
        queries = self.to_q(sample_features(self.src, points_cell))
        attention = torch.einsum("bnd,bmd->bnm", queries, self.keys) / WIDTH**0.5
        return attention.softmax(dim=-1).unflatten(-1, self.trg_size)


class Points(Method):
    """Similarity = an attention map, made for each query; the objective of the config reads it like any other."""

    reads = ("dino",)

    def __init__(self, image_size, channels):
        super().__init__()
        self.image_size = image_size
        self.attention = nn.ModuleDict({name: nn.Linear(channels, WIDTH, bias=False) for name in ("q", "k")})

    @classmethod
    def build(cls, cfg, device, categories, training, folder=None):
        from model.backbone.facts import dino_facts
        from model.source import find_dino

        torch.manual_seed(cfg.SEED)
        return cls(cfg.DATASET.IMAGE_SIZE, dino_facts(**find_dino(cfg)).width).to(device)

    @property
    def trainable(self):
        return self.attention

    def similarity(self, batch, seeds):
        src, trg = (batch[f"{side}_dino"].float() for side in ("src", "trg"))
        return AttentionSimilarity(self.attention["q"], self.attention["k"], src, trg)


@pytest.fixture
def points(monkeypatch):
    monkeypatch.setitem(METHODS, "points", Entry("tests.test_method_points:Points", ("dino",), learns=True))


def settings(world, output, *more):
    dino = ("METHOD.DINO_FOLDER", str(world.root / "dino"), "METHOD.DINO_SIZE", "[56, 56]")
    return load_config(None, world.opts(output, "METHOD.NAME", "points", *dino, *more))


def score(world, output, *more):
    content, predictions = run_test(settings(world, output, *more))
    return content["summary"], predictions


def test_it_is_tested_trained_and_tested_again(world, tmp_path):
    cfg = check_config(settings(world, tmp_path, "TRAIN.EPOCHS", "10", "VAL.PICTURES", "1"), training=True)
    assert train_script.train(cfg, overwrite=False) == 0
    untrained, learned = score(world, tmp_path), score(world, tmp_path, "METHOD.WEIGHTS", "points_spair_tiny")
    assert set(learned[0]["pck"]) == {"nn", "bilinear", "softmax", "kernelsoftmax"} and learned[0]["pairs"] == 4
    assert learned[1] != untrained[1]


def test_its_pictures_are_drawn_and_those_it_has_not_are_refused(world, tmp_path):
    from engine.build import build_test
    from engine.picture import draw_pairs, match_pair_densely

    cfg = settings(world, tmp_path)
    accelerator, pairs, method = build_test(cfg, lambda pairs: [0])
    (pictures,) = draw_pairs(cfg, method, pairs, [0], "points", accelerator.device)
    assert set(pictures) == {"matches", "correlation"}
    with pytest.raises(ConfigError, match="METHOD.NAME points matches point by point and has no feature maps"):
        match_pair_densely(cfg, method, pairs, 0, accelerator.device, grid=4)
