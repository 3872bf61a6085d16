"""The loss against the plain reference, by hand, and on extreme inputs."""

import math

import pytest
import torch
from torch.nn import functional as F

from loss.kernel_smoothed_cross_entropy import KernelSmoothedCrossEntropy, gaussian_kernel, sample_log_bilinear
from script.speed import reference
from utils.localise import FeatureSimilarity

IMAGE_SIZE = (64, 96)


def make_pair(batch=2, n=5, channels=8, size=(9, 13), seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    feats = [torch.randn(batch, channels, *size, generator=g).to(dtype) for _ in range(2)]
    extent = torch.tensor([IMAGE_SIZE[1] - 1.0, IMAGE_SIZE[0] - 1.0])
    kps = [torch.rand(batch, n, 2, generator=g) * extent for _ in range(2)]
    return *feats, *kps, torch.ones(batch, n, dtype=torch.bool)


def plain_loss(src, trg, src_kps, trg_kps, mask, **settings):
    """(B,): of each pair by the plain reference; valid points come first."""
    pairs = [(src[b : b + 1], trg[b : b + 1]) for b in range(len(src))]
    points = zip(src_kps[:, None], trg_kps[:, None], mask.sum(dim=1, keepdim=True).tolist(), strict=True)
    return torch.stack([reference.compute_loss([maps], *kps, IMAGE_SIZE, **settings)
                        for maps, kps in zip(pairs, points, strict=True)])  # fmt: skip


def apply(loss, src, trg, *points):
    return loss(FeatureSimilarity(src, trg), *points, IMAGE_SIZE)


def test_equals_the_plain_reference():
    src, trg, src_kps, trg_kps, mask = (v.double() if v.is_floating_point() else v for v in make_pair())
    mask[1, 3:] = False
    expected = plain_loss(src, trg, src_kps, trg_kps, mask, beta=0.2, kernel_size=7, sigma=1.5)
    actual = KernelSmoothedCrossEntropy(beta=0.2)(FeatureSimilarity(src, trg), src_kps, trg_kps, mask, IMAGE_SIZE)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_gradient_equals_that_of_the_plain_reference():
    src, trg, src_kps, trg_kps, mask = (v.double() if v.is_floating_point() else v for v in make_pair(n=3))
    src.requires_grad_(), trg.requires_grad_()
    expected = plain_loss(src, trg, src_kps, trg_kps, mask, beta=0.2, kernel_size=5, sigma=1.0).sum()
    actual = KernelSmoothedCrossEntropy(beta=0.2, kernel_size=5, sigma=1.0)(
        FeatureSimilarity(src, trg), src_kps, trg_kps, mask, IMAGE_SIZE
    ).sum()
    for ours, theirs in zip(
        torch.autograd.grad(actual, (src, trg)), torch.autograd.grad(expected, (src, trg)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def test_hand_computed_loss_of_a_uniform_map():
    """Constant features give p = 1/49; of the 7 x 7 offsets the 5 x 5 strictly inside the 7 x 7 map count."""
    feat = torch.ones(1, 4, 7, 7)
    centre = torch.tensor([[[30.0, 30.0]]])
    loss = KernelSmoothedCrossEntropy()(
        FeatureSimilarity(feat, feat), centre, centre, torch.ones(1, 1, dtype=torch.bool), (61, 61)
    )
    kernel = sum(
        math.exp(-(dx * dx + dy * dy) / 4.5) / (2 * math.pi * 2.25) for dx in range(-2, 3) for dy in range(-2, 3)
    )
    assert loss.item() == pytest.approx(kernel * math.log(49), rel=1e-5)


def test_kernel_size_one_is_cross_entropy():
    src, trg, _, _, mask = make_pair(batch=1, n=1)
    cell = torch.tensor([[[3.0, 2.0]]])
    px = cell * torch.tensor([95 / 12, 63 / 8])
    loss = KernelSmoothedCrossEntropy(beta=0.5, kernel_size=1)(FeatureSimilarity(src, trg), px, px, mask, IMAGE_SIZE)
    sim = torch.einsum("c,chw->hw", F.normalize(src[0, :, 2, 3], dim=0), F.normalize(trg[0], dim=0))
    expected = F.cross_entropy(sim.flatten()[None] / 0.5, torch.tensor([2 * 13 + 3]))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_gaussian_kernel_values():
    offsets, weight = gaussian_kernel(7, 1.5, like=torch.zeros(1))
    assert offsets.shape == (49, 2)
    assert offsets[0].tolist() == [-3, -3] and offsets[1].tolist() == [-2, -3]  # x runs first
    assert weight[24].item() == pytest.approx(1 / (2 * math.pi * 2.25))
    assert weight.sum().item() == pytest.approx(0.96, abs=0.01)


def test_log_bilinear_is_the_log_of_the_bilinear_sample():
    p = torch.softmax(torch.randn(1, 1, 6 * 5, generator=torch.Generator().manual_seed(0)), -1)
    points = torch.tensor([[[[0.0, 0.0], [4.0, 5.0], [1.25, 2.5], [3.0, 4.5], [-2.0, 9.0]]]])
    norm = points.clamp(min=0) / torch.tensor([2.0, 2.5]) - 1
    expected = F.grid_sample(p.view(1, 1, 6, 5), norm, align_corners=True, padding_mode="border").log()
    torch.testing.assert_close(sample_log_bilinear(p.log(), points, (6, 5)), expected.view(1, 1, 5))


def test_padded_keypoints_change_nothing_whatever_they_hold():
    src, trg, src_kps, trg_kps, mask = make_pair(n=4)
    loss = KernelSmoothedCrossEntropy()
    expected = loss(FeatureSimilarity(src, trg), src_kps, trg_kps, mask, IMAGE_SIZE)
    junk = torch.full((2, 3, 2), float("nan"))
    padded_mask = torch.cat((mask, torch.zeros(2, 3, dtype=torch.bool)), 1)
    padded = [torch.cat((kps, junk), 1) for kps in (src_kps, trg_kps)]
    src.requires_grad_()
    actual = loss(FeatureSimilarity(src, trg), *padded, padded_mask, IMAGE_SIZE)
    torch.testing.assert_close(actual.detach(), expected)
    assert torch.autograd.grad(actual.sum(), src)[0].isfinite().all()


def test_pair_without_keypoints_is_zero_with_zero_gradient():
    src, trg, src_kps, trg_kps, mask = make_pair()
    mask[1] = False
    src.requires_grad_()
    losses = KernelSmoothedCrossEntropy()(FeatureSimilarity(src, trg), src_kps, trg_kps, mask, IMAGE_SIZE)
    assert losses.shape == (2,) and losses[1] == 0 and losses[0] > 0
    grad = torch.autograd.grad(losses.mean(), src)[0]
    assert grad.isfinite().all() and (grad[1] == 0).all() and (grad[0] != 0).any()


def test_batch_of_two_is_two_batches_of_one():
    inputs = make_pair()
    loss = KernelSmoothedCrossEntropy()
    singles = [apply(loss, *(v[b : b + 1] for v in inputs)) for b in range(2)]
    torch.testing.assert_close(apply(loss, *inputs), torch.cat(singles))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_computed_in_float32(dtype):
    src, trg, src_kps, trg_kps, mask = make_pair(dtype=dtype)
    loss = KernelSmoothedCrossEntropy()
    expected = loss(FeatureSimilarity(src.float(), trg.float()), src_kps, trg_kps, mask, IMAGE_SIZE)
    src.requires_grad_()
    actual = loss(FeatureSimilarity(src, trg), src_kps, trg_kps, mask, IMAGE_SIZE)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.detach(), expected)
    assert torch.autograd.grad(actual.sum(), src)[0].isfinite().all()


def test_autocast_does_not_lower_the_precision():
    inputs = make_pair()
    loss = KernelSmoothedCrossEntropy()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = apply(loss, *inputs)
    torch.testing.assert_close(inside, apply(loss, *inputs), rtol=0, atol=0)


@pytest.mark.parametrize(("scale", "dtype"), [(1e-4, torch.float32), (1.0, torch.float16), (6e4, torch.float16)])
def test_extremely_peaked_maps_give_finite_loss_and_gradient(scale, dtype):
    """One cell takes all the mass, the truth lies elsewhere: p underflows to 0 in float32, log p must not."""
    src = torch.zeros(1, 2, 9, 13)
    src[:, 0] = scale
    trg = -src.clone()
    trg[:, :, 1, 1] *= -1
    src, trg = src.to(dtype).requires_grad_(), trg.to(dtype).requires_grad_()
    kps = torch.tensor([[[60.0, 40.0]]])
    loss = KernelSmoothedCrossEntropy(beta=1e-3)(
        FeatureSimilarity(src, trg), kps, kps, torch.ones(1, 1, dtype=torch.bool), IMAGE_SIZE
    )
    assert loss.isfinite().all() and loss.item() > 1000
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss.sum(), (src, trg)))


def test_all_zero_features_are_finite():
    zero = torch.zeros(1, 4, 9, 13, requires_grad=True)
    kps = torch.tensor([[[60.0, 40.0]]])
    loss = KernelSmoothedCrossEntropy()(
        FeatureSimilarity(zero, zero), kps, kps, torch.ones(1, 1, dtype=torch.bool), IMAGE_SIZE
    )
    assert loss.isfinite().all() and torch.autograd.grad(loss.sum(), zero)[0].isfinite().all()


@pytest.mark.parametrize(("kernel_size", "reach"), [(1, 0), (7, 3)])
def test_loss_falls_as_the_similarity_around_the_true_place_rises(kernel_size, reach):
    src, trg, src_kps, trg_kps, mask = make_pair(batch=1, n=1)
    src_kps[:], trg_kps[:] = torch.tensor([95 / 12 * 4, 63 / 8 * 3]), torch.tensor([95 / 12 * 7, 63 / 8 * 4])
    loss = KernelSmoothedCrossEntropy(kernel_size=kernel_size)
    around = (..., slice(4 - reach, 5 + reach), slice(7 - reach, 8 + reach))
    values = []
    for mix in (0.0, 0.25, 0.5, 0.75, 1.0):
        target = trg.clone()
        target[around] = (1 - mix) * trg[around] + mix * src[:, :, 3:4, 4:5]
        values.append(loss(FeatureSimilarity(src, target), src_kps, trg_kps, mask, IMAGE_SIZE).item())
    assert values == sorted(values, reverse=True) and values[0] > values[-1] + 1


def test_a_gradient_step_lowers_the_loss():
    src, trg, src_kps, trg_kps, mask = make_pair()
    src.requires_grad_()
    loss = KernelSmoothedCrossEntropy()
    before = loss(FeatureSimilarity(src, trg), src_kps, trg_kps, mask, IMAGE_SIZE).mean()
    step = src - 1e-2 * torch.autograd.grad(before, src)[0]
    assert loss(FeatureSimilarity(step, trg), src_kps, trg_kps, mask, IMAGE_SIZE).mean() < before
