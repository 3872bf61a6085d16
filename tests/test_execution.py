"""Compiled and re-laid networks give the same numbers, images go through once."""

import warnings

import pytest
import torch

from model.backbone.execution import CompiledForward, resolve_memory_format, speed_up
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
    matcher = assert_same_numbers(folder, memory_format=torch.channels_last, compile_mode="none")
    weight = matcher.diffusion.unet.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
def test_compiled_gives_the_same_numbers(folder, backend):
    settings = {"memory_format": torch.contiguous_format, "compile_mode": "default", "backend": backend}
    assert not assert_same_numbers(folder, **settings).diffusion.unet.forward.failed


def test_a_failing_compiler_is_told_once_and_done_without():
    def refuse(graph, inputs):
        raise RuntimeError("no compiler here")

    network = speed_up(torch.nn.Linear(3, 2), torch.contiguous_format, "default", backend=refuse)
    x = torch.ones(4, 3)
    with pytest.warns(UserWarning, match=r"torch.compile \(default\) failed, going on without it: .*no compiler here"):
        found = network(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(found, network(x))
    assert torch.equal(found, torch.nn.functional.linear(x, network.weight, network.bias))


def test_errors_of_the_call_itself_are_no_compiler_failures():
    def fail(x):
        raise ValueError("not a number")

    call = CompiledForward(fail, "default", backend="eager")
    with pytest.raises(ValueError, match="not a number"):
        call(torch.ones(1))
    assert not call.failed


def test_memory_format_by_device_and_precision():
    cuda = torch.device("cuda")
    assert resolve_memory_format("auto", cuda, torch.bfloat16) == torch.channels_last
    assert resolve_memory_format("auto", cuda, torch.float32) == torch.contiguous_format
    assert resolve_memory_format("auto", CPU, torch.bfloat16) == torch.contiguous_format
    assert resolve_memory_format("channels_last", CPU, torch.float32) == torch.channels_last
    with pytest.raises(ValueError, match="one of auto, contiguous, channels_last; got 'nhwc'"):
        resolve_memory_format("nhwc", CPU, torch.float32)
    with pytest.raises(ValueError, match="compile mode must be one of none"):
        speed_up(torch.nn.Identity(), torch.contiguous_format, "fast")


@pytest.mark.usefixtures("fresh_accelerator")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_prompt_runs_without_autocast_in_every_precision(dtype):
    from engine.process import build_accelerator

    accelerator = build_accelerator("cpu", dtype)
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
    from engine.evaluate import Share, evaluate
    from engine.precompute import build_caches
    from engine.report import build_protocol

    cfg = load_config(None, world.opts(tmp_path))
    pairs = build_pairs(cfg, "trn")
    matcher, rows = build(folder, prompt, ensemble=3), []
    build_caches(cfg, (pairs,), matcher, build_accelerator(cfg))
    matcher.prompt._index = {name: i % 2 for i, name in enumerate(pairs.benchmark.categories)}
    matcher.diffusion.unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    records = evaluate(matcher, pairs, build_protocol(cfg), 0, CPU, Share(batch_size=2))
    n_images = len({ref.identifier for ref in pairs.benchmark.images()})
    assert len(records) == len(pairs) and 2 * len(pairs) > n_images
    assert sum(rows) == 3 * n_images
