"""Compiled and re-laid networks give the same numbers, images go through once."""

import pytest
import torch

from model.backbone.device import speed_up
from tests import tiny
from tests.test_method import build, close, make_pairs

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny.build_tiny_stable_diffusion(tmp_path_factory.mktemp("sd")))


def features_and_gradient(matcher):
    """Both maps of three pairs, and what their difference gives the prompt as a gradient."""
    src, trg = matcher.pair_features(*make_pairs())
    gradients = torch.autograd.grad((src - trg).square().mean(), list(matcher.prompt.parameters()))
    return src.detach(), trg.detach(), torch.cat([gradient.flatten() for gradient in gradients])


def assert_same_numbers(folder, **settings):
    torch.manual_seed(0)
    plain = build(folder)
    fast = build(folder)
    fast.prompt.load_state_dict(plain.prompt.state_dict())
    speed_up(fast.diffusion.unet, **settings)
    for a, b in zip(features_and_gradient(fast), features_and_gradient(plain), strict=True):
        close(a, b)
    return fast


def test_channels_last_gives_the_same_numbers(folder):
    matcher = assert_same_numbers(folder, memory_format="channels_last", compile_mode="none")
    weight = matcher.diffusion.unet.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


def test_compiled_gives_the_same_numbers(folder, monkeypatch):
    """Traced and run as it is: the machine's compiler would take minutes."""
    traced, compile_ = [], torch.compile

    def trace(graph, inputs):
        traced.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", lambda function, mode: compile_(function, backend=trace))
    assert_same_numbers(folder, memory_format="contiguous", compile_mode="default")
    assert traced


@pytest.mark.usefixtures("fresh_accelerator")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_prompt_runs_without_autocast_in_every_precision(world, tmp_path, precision):
    from config import load_config
    from engine.build import build_accelerator

    accelerator = build_accelerator(load_config(None, world.opts(tmp_path, "PRECISION", precision)))
    layer = accelerator.prepare(torch.nn.Linear(3, 3))
    assert layer(torch.ones(1, 3)).dtype == torch.float32
    assert accelerator.autocast_handler.enabled is False and accelerator.scaler is None


@pytest.mark.usefixtures("fresh_accelerator")
def test_half_precision_trains_and_tests_on_a_cpu(world, tmp_path):
    from tests.test_train import run

    run(world, tmp_path, "TRAIN.MAX_STEPS", "2", "PRECISION", "fp16")


@pytest.mark.parametrize("prompt", ["text", "empty", "Single_spair_tiny_TokenEmbeds9"])
def test_every_image_goes_through_the_unet_once_per_draw(world, tmp_path, folder, prompt):
    """Over a whole test split, whatever the number of pairs that an image is in."""
    from config import load_config
    from engine.build import build_accelerator, build_pairs
    from engine.evaluate import evaluate
    from engine.precompute import build_caches

    cfg = load_config(None, world.opts(tmp_path))
    pairs = build_pairs(cfg, "trn")
    matcher, rows = build(folder, prompt, ensemble=3), []
    build_caches(cfg, (pairs,), matcher, build_accelerator(cfg))
    matcher.prompt._index = {name: i % 2 for i, name in enumerate(pairs.benchmark.categories)}
    matcher.diffusion.unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    records = evaluate(cfg, matcher, pairs, CPU)
    n_images = len({ref.identifier for ref in pairs.benchmark.images()})
    assert len(records) == len(pairs) and 2 * len(pairs) > n_images
    assert sum(rows) == 3 * n_images
