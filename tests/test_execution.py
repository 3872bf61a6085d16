"""Compiled and re-laid networks give the same numbers, rows are chosen and halved, maps spill, nothing waits."""

import warnings

import pytest
import torch

from engine.host_copy import HostCopy
from engine.transfer import FeatureStore
from model.backbone.execution import CompiledForward, RowLimit, plan_rows, resolve_memory_format, speed_up
from tests import tiny
from tests.test_matcher import PAIR, build, close, make_pairs

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny.build_tiny_stable_diffusion(tmp_path_factory.mktemp("sd")))


def features_and_gradient(matcher):
    """Both maps of three pairs, and what their difference gives the prompt as a gradient."""
    src, trg = matcher.extract_pair(*make_pairs())
    gradients = torch.autograd.grad((src - trg).square().mean(), list(matcher.prompt.parameters()))
    return src.detach(), trg.detach(), torch.cat([gradient.flatten() for gradient in gradients])


def assert_same_numbers(folder, **settings):
    torch.manual_seed(0)
    plain = build(folder)
    fast = build(folder)
    fast.prompt.load_state_dict(plain.prompt.state_dict())
    speed_up(fast.unet, **settings)
    for a, b in zip(features_and_gradient(fast), features_and_gradient(plain), strict=True):
        close(a, b)
    return fast


def test_channels_last_gives_the_same_numbers(folder):
    matcher = assert_same_numbers(folder, memory_format=torch.channels_last, compile_mode="none")
    weight = matcher.unet.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
def test_compiled_gives_the_same_numbers(folder, backend):
    settings = {"memory_format": torch.contiguous_format, "compile_mode": "default", "backend": backend}
    assert not assert_same_numbers(folder, **settings).unet.forward.failed


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


def test_rows_are_halved_when_memory_runs_out(folder):
    """Nine images of which four fit: the result is that of one call, and the limit stays."""
    matcher, plain = build(folder, PAIR, ensemble=3, max_rows=12), build(folder, PAIR, ensemble=3)
    plain.prompt.load_state_dict(matcher.prompt.state_dict())
    forward, sizes = matcher.unet.forward, []

    def limited(latents, *args, **kwargs):
        sizes.append(len(latents))
        if len(latents) > 4:
            raise torch.OutOfMemoryError("out of memory")
        return forward(latents, *args, **kwargs)

    matcher.unet.forward = limited
    with torch.no_grad(), pytest.warns(UserWarning, match="out of memory with 12 rows"):
        found = matcher.extract_pair(*make_pairs(5))
    with torch.no_grad():
        for a, b in zip(found, plain.extract_pair(*make_pairs(5)), strict=True):
            close(a, b)
        assert matcher.row_limit.limit == 3 and max(sizes[2:]) <= 4
        tried = len(sizes)
        matcher.extract_pair(*make_pairs(5))
    assert max(sizes[tried:]) == 3
    with pytest.raises(torch.OutOfMemoryError), torch.no_grad():
        RowLimit(1).run(2, lambda rows: matcher.unet.forward(torch.zeros(5)), CPU)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        RowLimit(0)


def test_rows_follow_free_memory():
    assert plan_rows(free_bytes=100.0, bytes_per_row=3.0, n=4) == 20  # 60 % of it
    assert plan_rows(free_bytes=1e6, bytes_per_row=1.0, n=4) == 64
    assert plan_rows(free_bytes=10.0, bytes_per_row=3.0, n=4) == 4  # what was tried has fitted


@pytest.mark.parametrize(("budget", "spilled"), [(0, 4), (48, 2), (1e9, 0)])
def test_maps_past_the_budget_spill(budget, spilled):
    store, maps = FeatureStore(budget), torch.arange(24.0).reshape(4, 3, 2, 1)
    store.add(["a", "b"], maps[:2])
    store.add(["c", "d"], maps[2:])
    assert store.n_spilled == spilled
    assert torch.equal(store.stack(["d", "a", "d"], CPU), maps[[3, 0, 3]])


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


def test_host_copies_are_the_tensors():
    assert HostCopy({"a": torch.tensor(3.0, requires_grad=True)}).get() == {"a": torch.tensor(3.0)}


@pytest.mark.parametrize("prompt", ["text", "empty", "Single_spair_tiny_TokenEmbeds9"])
def test_every_image_goes_through_the_unet_once_per_draw(world, tmp_path, folder, prompt):
    """Over a whole test split, whatever the number of pairs that an image is in."""
    from config import load_config
    from engine.build import build_accelerator, build_pairs
    from engine.evaluate import evaluate
    from engine.precompute import build_caches
    from engine.report import build_protocol

    cfg = load_config(None, world.opts(tmp_path))
    pairs = build_pairs(cfg, "trn")
    build_caches(cfg, (pairs,), None, build_accelerator(cfg))
    matcher, rows = build(folder, prompt, ensemble=3), []
    matcher.prompt._index = {name: i % 2 for i, name in enumerate(pairs.benchmark.categories)}
    matcher.unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    records = evaluate(matcher, pairs, build_protocol(cfg), seed=0, batch_size=2, device=CPU, feature_gib=0.0)
    n_images = len({ref.identifier for ref in pairs.benchmark.images()})
    assert len(records) == len(pairs) and 2 * len(pairs) > n_images
    assert sum(rows) == 3 * n_images


def test_a_stop_is_heard_by_all_one_call_late():
    class Pair:
        """Two processes of which the other was asked at its second call."""

        num_processes, device, calls = 2, CPU, 0

        def reduce(self, tensor):
            self.calls += 1
            return tensor + (self.calls == 2)

    from engine.process import StopRequest

    pair, stop = Pair(), StopRequest()
    assert [stop.agreed(pair) for _ in range(3)] == [False, False, True]
