"""Dense matching: plain loops, known answers, and memory."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from utils import dense
from utils.dense import match_densely, resize_features
from utils.geometry import cell_grid, cell_to_px
from utils.localise import FeatureSimilarity, localise


def random_maps(channels=8, src=(6, 5), trg=(7, 9), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(channels, *size, generator=generator) for size in (src, trg)]


def best_place(vector, feat):
    """(x, y) and cosine of the most similar cell, by a plain loop."""
    best, place = -2.0, (0, 0)
    for y in range(feat.shape[1]):
        for x in range(feat.shape[2]):
            other = feat[:, y, x]
            cosine = float(vector @ other / (vector.norm() * other.norm()))
            if cosine > best:
                best, place = cosine, (x, y)
    return place, best


def test_equals_plain_loops():
    src, trg = random_maps()
    field = match_densely(src, trg)
    assert field.points.shape == (6, 5, 2) and field.similarity.shape == field.cycle.shape == (6, 5)
    for y in range(6):
        for x in range(5):
            place, cosine = best_place(src[:, y, x], trg)
            back, _ = best_place(trg[:, place[1], place[0]], src)
            assert field.points[y, x].tolist() == list(place)
            assert field.similarity[y, x].item() == pytest.approx(cosine, abs=1e-5)
            assert field.cycle[y, x].item() == pytest.approx(((back[0] - x) ** 2 + (back[1] - y) ** 2) ** 0.5, abs=1e-5)


def test_identical_and_shifted_maps():
    src, _ = random_maps(src=(8, 8))
    same = match_densely(src, src)
    assert torch.equal(same.points.flatten(0, 1), cell_grid((8, 8), like=src))
    torch.testing.assert_close(same.similarity, torch.ones(8, 8))
    assert same.cycle.max() == 0
    shifted = match_densely(src, src.roll((2, 3), dims=(1, 2)))
    inner = shifted.points[:6, :5] - same.points[:6, :5]
    assert (inner == torch.tensor([3.0, 2.0])).all() and shifted.cycle.max() == 0


def test_a_match_that_does_not_come_back_has_its_distance_as_error():
    src = torch.tensor([[[1.0, 0.0, 0.8]], [[0.0, 1.0, 0.1]]])  # (2, 1, 3): the third cell resembles the first
    trg = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    assert match_densely(src, trg).cycle.tolist() == [[0.0, 0.0, 2.0]]


@pytest.mark.parametrize("name", ["nn", "bilinear", "softmax", "kernelsoftmax", "window"])
def test_equals_the_localiser_at_every_cell(name):
    src, trg = random_maps(src=(6, 6), trg=(6, 6))
    field = match_densely(src, trg, localiser=name, sigma=1.5, window=2, image_size=(96, 96))
    cells_px = cell_to_px(cell_grid((6, 6), like=src), (6, 6), (96, 96))
    similarity = FeatureSimilarity(src[None], trg[None])
    predicted = localise(similarity, cells_px[None], (96, 96), (name,), sigma=1.5, window=2)[name][0]
    torch.testing.assert_close(cell_to_px(field.points, (6, 6), (96, 96)).flatten(0, 1), predicted, atol=1e-3, rtol=0)


class LargestTensor(TorchDispatchMode):
    """Notes the size in bytes of the largest tensor that any operation makes."""

    nbytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.nbytes = max(self.nbytes, result.nbytes)
        return result


def test_memory_stays_within_the_budget_with_equal_results():
    src, trg = random_maps(4, (40, 40), (40, 40))
    with LargestTensor() as largest:
        bounded = match_densely(src, trg, "kernelsoftmax", budget_mib=1)
    assert largest.nbytes <= dense.MIB / dense.MAPS_PER_QUERY * 1.01 < 40**4 * 4 / 50
    free = match_densely(src, trg, "kernelsoftmax")
    for name in ("points", "similarity", "cycle"):
        torch.testing.assert_close(getattr(bounded, name), getattr(free, name), atol=1e-4, rtol=0)


def test_half_precision_and_finer_grids():
    src, trg = random_maps()
    assert match_densely(src.half(), trg.half()).similarity.dtype == torch.float32
    fine = resize_features(src, (11, 9))
    assert fine.shape == (8, 11, 9)
    torch.testing.assert_close(fine[:, ::2, ::2], src)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"localiser": "best"}, "unknown localiser"),
        ({"trg_feat": torch.zeros(3, 4, 4)}, r"same C, got \(8, 6, 5\) and \(3, 4, 4\)"),
        ({"budget_mib": 0}, "budget_mib must be at least 1, got 0"),
    ],
)
def test_unusable_arguments_are_refused(change, message):
    src, trg = random_maps()
    with pytest.raises(ValueError, match=message):
        match_densely(**{"src_feat": src, "trg_feat": trg, **change})
