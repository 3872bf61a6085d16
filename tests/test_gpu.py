"""What only a GPU can show: the same numbers compiled, re-laid and spilled, and rows chosen from its memory."""

import pytest
import torch

from engine.host_copy import HostCopy
from engine.transfer import FeatureStore, move_batch
from model.backbone.execution import RowLimit, speed_up
from tests import tiny
from tests.test_execution import features_and_gradient
from tests.test_matcher import build, close, make_pairs

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny.build_tiny_stable_diffusion(tmp_path_factory.mktemp("sd")))


def build_on_gpu(folder, memory_format=torch.contiguous_format, compile_mode="none"):
    torch.manual_seed(0)
    matcher = build(folder).to(CUDA)
    speed_up(matcher.unet, memory_format, compile_mode)
    return matcher


@pytest.mark.parametrize("compile_mode", ["none", "default", "reduce-overhead"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_gpu_gives_the_numbers_of_a_cpu(folder, memory_format, compile_mode):
    torch.manual_seed(0)
    expected = features_and_gradient(build(folder))
    matcher = build_on_gpu(folder, memory_format, compile_mode)
    pairs, seeds = make_pairs()
    for _ in range(3):  # CUDA graphs are recorded, then replayed
        src, trg = matcher.extract_pair(move_batch(pairs, CUDA), seeds)
        gradients = torch.autograd.grad((src - trg).square().mean(), list(matcher.prompt.parameters()))
    gradient = torch.cat([part.flatten() for part in gradients])
    for found, want in zip((src, trg, gradient), expected, strict=True):
        torch.testing.assert_close(found.detach().cpu(), want, rtol=1e-2, atol=1e-3)
    if compile_mode != "none":
        assert not matcher.unet.forward.failed


@torch.no_grad()
def test_rows_are_chosen_at_the_first_call(folder):
    matcher = build_on_gpu(folder)
    matcher.ensemble = 3
    pairs, seeds = make_pairs()
    first = matcher.extract_pair(move_batch(pairs, CUDA), seeds)
    assert matcher.row_limit.limit == 64
    for a, b in zip(first, matcher.extract_pair(move_batch(pairs, CUDA), seeds), strict=True):
        close(a, b)


def test_memory_that_is_really_short_is_shared_out():
    limit, row_bytes = RowLimit(64), torch.cuda.get_device_properties(CUDA).total_memory // 40
    with pytest.warns(UserWarning, match="out of memory with 64 rows"):
        rows = limit.run(64, lambda rows: torch.empty(rows * row_bytes, dtype=torch.uint8, device=CUDA)[:1] * 0, CUDA)
    assert limit.limit == 32 and rows.numel() == 1


def test_copies_and_spilled_maps_are_pinned_and_whole():
    maps = torch.randn(4, 3, 2, 2, device=CUDA)
    copy = HostCopy({"maps": maps}).get()["maps"]
    assert copy.is_pinned() and torch.equal(copy, maps.cpu())
    store = FeatureStore(0)
    store.add(list("abcd"), maps)
    assert store.n_spilled == 4 and torch.equal(store.stack(list("dcba"), CUDA), maps.flip(0))
