"""What only a GPU can show: the same numbers compiled and re-laid."""

import pytest
import torch

from engine.transfer import move_batch
from model.backbone.device import speed_up
from tests import tiny
from tests.test_execution import features_and_gradient
from tests.test_method import build, make_pairs

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny.build_tiny_stable_diffusion(tmp_path_factory.mktemp("sd")))


def build_on_gpu(folder, memory_format="contiguous", compile_mode="none"):
    torch.manual_seed(0)
    matcher = build(folder).to(CUDA)
    speed_up(matcher.diffusion.unet, memory_format, compile_mode)
    return matcher


@pytest.mark.parametrize("compile_mode", ["none", "default"])
@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
def test_a_gpu_gives_the_numbers_of_a_cpu(folder, memory_format, compile_mode):
    torch.manual_seed(0)
    expected = features_and_gradient(build(folder))
    matcher = build_on_gpu(folder, memory_format, compile_mode)
    pairs, seeds = make_pairs()
    for _ in range(2):
        src, trg = matcher.pair_features(move_batch(pairs, CUDA), seeds)
        gradients = torch.autograd.grad((src - trg).square().mean(), list(matcher.prompt.parameters()))
    gradient = torch.cat([part.flatten() for part in gradients])
    for found, want in zip((src, trg, gradient), expected, strict=True):
        torch.testing.assert_close(found.detach().cpu(), want, rtol=1e-2, atol=1e-3)
