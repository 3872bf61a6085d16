"""A loss, a localiser and a prompt kind more are one file, here this one, and one line of a table each."""

import pytest
import torch
from torch import nn

import test as test_script
import train as train_script
from config import load_config
from engine.build import build_loss, build_method
from engine.check import check_config
from loss import LOSSES
from model.method import METHODS, Entry
from model.prompt.name import KINDS
from model.prompt.simple import SINGLE_KEY, SimplePrompt, start_sequences
from model.prompt.store import read_prompt
from model.source import find_sources
from tests.command import run_test
from utils.geometry import cell_grid, px_to_cell, sample_features
from utils.localise import LOCALISERS

NAME = "Pinned_spair_tiny_TokenEmbeds5"


class NegativeSimilarity(nn.Module):
    """- similarity at the true target, mean over the keypoints; `beta` divides it."""

    def __init__(self, beta):
        super().__init__()
        self.beta = beta

    def forward(self, similarity, src_kps, trg_kps, kps_mask, image_size):
        sim = similarity(px_to_cell(src_kps, image_size, similarity.src_size))  # (B, N, h, w)
        at = px_to_cell(trg_kps, image_size, sim.shape[-2:])
        found = sample_features(sim.flatten(0, 1)[:, None], at.flatten(0, 1)[:, None]).view(at.shape[:2])
        return -torch.where(kps_mask, found, 0.0).sum(dim=1) / kps_mask.sum(dim=1).clamp(min=1) / self.beta


def top5(query):
    """Mean of the five best cells."""
    sim = query.sim
    best = sim.flatten(-2).topk(5, dim=-1).indices
    return cell_grid(sim.shape[-2:], like=sim)[best].mean(dim=-2)


class Pinned(SimplePrompt):
    """A Single prompt whose first token stays where it starts."""

    def forward(self, batch):
        sequence = self.sequences()
        return torch.cat([sequence[:, :2].detach(), sequence[:, 2:]], dim=1)


def build(name, text, *, categories, init, seed, **_):
    return Pinned(name, start_sequences(name, text, categories, init, seed))


def check(name, tensors):
    if set(tensors) != {SINGLE_KEY}:
        raise ValueError(f"{name} is one sequence")


def restore(name, tensors, text, categories, condition_shape):
    return Pinned(name, {SINGLE_KEY: tensors[SINGLE_KEY][0]})


@pytest.fixture
def lines(monkeypatch, fresh_accelerator):
    monkeypatch.setitem(LOSSES, "negative", NegativeSimilarity)
    monkeypatch.setitem(LOCALISERS, "top5", top5)
    monkeypatch.setitem(KINDS, "Pinned", "tests.test_extending")


def test_train_py_and_test_py_take_them(world, tmp_path, lines):
    new = ("LOSS.NAME", "negative", "EVAL.LOCALISERS", "[nn, top5]", "VAL.LOCALISER", "top5")
    kind = ("PROMPT.KIND", "Pinned", "PROMPT.LENGTH", "5", "PROMPT.TYPE", NAME)
    cfg = load_config(None, world.opts(tmp_path, *new, *kind, "TRAIN.MAX_STEPS", "2"))
    start = build_method(cfg, torch.device("cpu"), None, training=True).prompt.to_tensors()[SINGLE_KEY]
    assert train_script.train(check_config(cfg, training=True), overwrite=False) == 0
    learned = read_prompt(tmp_path / "prompt" / NAME).tensors[SINGLE_KEY]
    moved = (learned != start).any(dim=-1)[0]
    assert moved.nonzero().flatten().tolist() == [2, 3, 4, 5]

    assert set(run_test(cfg)[0]["summary"]["pck"]) == {"nn", "top5"}


def test_a_loss_is_given_the_settings_that_it_takes(lines):
    loss = build_loss(load_config(None, ["LOSS.NAME", "negative", "LOSS.BETA", "0.5"]))
    assert loss.beta == 0.5


def test_a_method_says_in_its_line_what_it_reads(world, tmp_path, monkeypatch):
    """What is not said there would not be among what made a result."""
    monkeypatch.setitem(METHODS, "dinov2", Entry("model.method.dinov2:DINOv2", ()))
    cfg = load_config(None, world.opts(tmp_path, "METHOD.NAME", "dinov2"))
    with pytest.raises(ValueError, match="the line of dinov2 in METHODS does not say that it reads dino"):
        build_method(cfg, torch.device("cpu"), None)


def test_what_has_the_wrong_shape_is_refused(world, tmp_path, monkeypatch, fresh_accelerator):
    class Mean(NegativeSimilarity):
        def forward(self, *args):
            return super().forward(*args).mean()

    monkeypatch.setitem(LOSSES, "mean", Mean)
    monkeypatch.setitem(LOCALISERS, "first", lambda query: top5(query)[:, :1])
    single = ("PROMPT.KIND", "Single", "TRAIN.MAX_STEPS", "1")
    cfg = load_config(None, world.opts(tmp_path, *single, "LOSS.NAME", "mean"))
    with pytest.raises(ValueError, match=r"one number per pair, \(B,\); got \(\)"):
        train_script.train(cfg, overwrite=False)
    cfg = load_config(None, world.opts(tmp_path, "EVAL.LOCALISERS", "[first]"))
    with pytest.raises(ValueError, match=r"localiser first gave \(\d+, 1, 2\); expected"):
        test_script.test(cfg)


def test_an_array_that_nobody_computes(world, tmp_path):
    with pytest.raises(ValueError, match=r"unknown cached array 'rgb'; known: posterior, .*model/source.py"):
        find_sources(load_config(None, world.opts(tmp_path)), ("rgb",), None)
