"""Coordinates and localisers: round trips, known shifts, and parity with the plain reference."""

import math

import pytest
import torch
from torch.nn import functional as F

from script.speed import reference
from utils import geometry
from utils.localise import LOCALISERS, FeatureSimilarity, Query, argmax_cell
from utils.localise import localise as localise_similarity

IMAGE_SIZE = (64, 96)
FEAT_SIZE = (9, 13)
ON_CORNERS = [
    name for name in LOCALISERS if name not in ("window", "centre")
]  # whose corner cells lie on the corner pixels


def make_pair(batch=2, n=6, channels=8, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    feats = [torch.randn(batch, channels, *FEAT_SIZE, generator=g).to(dtype) for _ in range(2)]
    kps = torch.rand(batch, n, 2, generator=g) * torch.tensor([IMAGE_SIZE[1] - 1.0, IMAGE_SIZE[0] - 1.0])
    return *feats, kps


def localise(src, trg, *args, **options):
    return localise_similarity(FeatureSimilarity(src, trg), *args, **options)


# --- coordinates ---


def test_coordinates_round_trip():
    px = make_pair()[2]
    cell = geometry.px_to_cell(px, IMAGE_SIZE, FEAT_SIZE)
    torch.testing.assert_close(geometry.cell_to_px(cell, FEAT_SIZE, IMAGE_SIZE), px)


def test_corners_lie_on_corners():
    corners = torch.tensor([[0.0, 0.0], [767.0, 767.0]])
    assert geometry.px_to_cell(corners, (768, 768), (48, 48)).tolist() == [[0, 0], [47, 47]]
    with pytest.raises(ValueError, match="at least 2"):
        geometry.cell_to_px(corners, (1, 1), (768, 768))


def test_rescale_kps_per_axis_and_per_image():
    kps = torch.tensor([[[10.0, 20.0]], [[10.0, 20.0]]])
    assert geometry.rescale_kps(kps, (100, 50), (200, 200)).tolist() == [[[40, 40]], [[40, 40]]]
    sizes = torch.tensor([[100, 50], [50, 100]])
    assert geometry.rescale_kps(kps, sizes, (100, 100)).tolist() == [[[20, 20]], [[10, 40]]]


def test_sample_features_equals_grid_sample_with_border_padding():
    feat, _, px = make_pair()
    cell = geometry.px_to_cell(px, IMAGE_SIZE, FEAT_SIZE)
    cell[0, 0], cell[0, 1] = torch.tensor([-3.0, 4.0]), torch.tensor([12.0, 8.0])
    h, w = FEAT_SIZE
    grid = (2 * cell / torch.tensor([w - 1, h - 1]) - 1)[:, :, None]
    expected = F.grid_sample(feat, grid, align_corners=True, padding_mode="border")[..., 0].transpose(1, 2)
    torch.testing.assert_close(geometry.sample_features(feat, cell), expected, atol=1e-5, rtol=1e-5)


def test_l2_normalise_adds_eps_to_the_norm_and_keeps_zero():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    torch.testing.assert_close(geometry.l2_normalise(x, dim=1, eps=1.0), torch.tensor([[0.5, 4 / 6], [0.0, 0.0]]))


def test_cell_grid_is_row_major_xy():
    assert geometry.cell_grid((2, 3), torch.zeros(1)).tolist() == [[0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [2, 1]]


# --- the plain reference ---


@pytest.mark.parametrize("name", ON_CORNERS)
def test_equals_the_plain_reference(name):
    src, trg, kps = (v.double() for v in make_pair(n=5))
    kps[0, 0], kps[0, 1] = torch.tensor([0.0, 0.0]), torch.tensor([95.0, 63.0])
    predicted = localise(src, trg, kps, IMAGE_SIZE, names=[name], beta=0.07, sigma=2.0)[name]
    for b in range(2):
        plain = reference.localise(src[b : b + 1], trg[b : b + 1], kps[b], IMAGE_SIZE, 0.07, 2.0)[name]
        torch.testing.assert_close(predicted[b], plain, atol=1e-9, rtol=0)


def test_similarity_is_the_cosine_of_sampled_features():
    src, trg, _ = make_pair(batch=1)
    sim = FeatureSimilarity(src, trg)(torch.tensor([[[3.0, 2.0], [3.5, 2.0]]]))
    assert sim.shape == (1, 2, *FEAT_SIZE) and sim.abs().max() <= 1
    for row, query in zip(sim[0], (src[0, :, 2, 3], (src[0, :, 2, 3] + src[0, :, 2, 4]) / 2), strict=True):
        torch.testing.assert_close(row, F.cosine_similarity(query[:, None, None], trg[0], dim=0), atol=1e-5, rtol=0)


# --- known answers ---


def on_cells(cells):
    return torch.tensor(cells, dtype=torch.float32)[None] * torch.tensor([95 / 12, 63 / 8])


@pytest.mark.parametrize("name", ON_CORNERS)
def test_identical_features_match_themselves(name):
    feat = torch.randn(1, 256, *FEAT_SIZE, generator=torch.Generator().manual_seed(0))
    kps = on_cells([[1, 1], [6, 4], [12, 8], [0, 0]])
    predicted = localise(feat, feat, kps, IMAGE_SIZE, names=[name])[name]
    torch.testing.assert_close(predicted, kps, atol=0.05, rtol=0)


@pytest.mark.parametrize("name", ON_CORNERS)
def test_a_shift_by_k_cells_moves_every_match_by_k_cells(name):
    feat = torch.randn(1, 256, *FEAT_SIZE, generator=torch.Generator().manual_seed(0))
    shifted = feat.roll((2, 3), dims=(2, 3))  # down by 2 cells, right by 3
    kps = on_cells([[1, 1], [6, 4], [8, 5]])
    predicted = localise(feat, shifted, kps, IMAGE_SIZE, names=[name])[name]
    torch.testing.assert_close(predicted, kps + torch.tensor([3 * 95 / 12, 2 * 63 / 8]), atol=0.05, rtol=0)


def test_maps_of_different_sizes():
    g = torch.Generator().manual_seed(0)
    small, large = torch.randn(1, 8, 5, 7, generator=g), torch.randn(1, 8, 9, 13, generator=g)
    kps = on_cells([[6, 4]])
    for src, trg in ((small, large), (large, small)):
        for predicted in localise(src, trg, kps, IMAGE_SIZE).values():
            assert predicted.shape == (1, 1, 2) and (predicted >= 0).all()
            assert (predicted <= torch.tensor([95.01, 63.01])).all()


def test_equal_maxima_give_the_first():
    sim = torch.zeros(1, 1, 4, 5)
    sim[0, 0, 1, 3] = sim[0, 0, 2, 0] = 1
    assert argmax_cell(sim).tolist() == [[[3, 1]]]
    assert argmax_cell(torch.zeros(2, 2, 5)).tolist() == [[0, 0], [0, 0]]


def test_kernelsoftmax_ignores_a_far_second_peak_that_pulls_softmax():
    src = torch.zeros(1, 2, 33, 33)
    src[:, 0] = 1
    trg = torch.zeros(1, 2, 33, 33)
    trg[:, 1] = 1
    trg[0, :, 2, 2] = torch.tensor([1.0, 0.0])
    trg[0, :, 30, 30] = torch.tensor([0.999, 0.045])
    found = localise(src, trg, torch.tensor([[[16.0, 16.0]]]), (33, 33))
    assert (found["softmax"] - 16).abs().max() < 1
    assert (found["kernelsoftmax"] - 2).abs().max() < 0.1


# --- window: GeoAware-SC's section on matching, in plain loops ---


def match_as_geoaware(src, trg, point, window, beta):
    """(x, y) px of one point (x, y) px, in maps (C, h, w) of an image of IMAGE_SIZE."""
    (height, width), (h, w) = IMAGE_SIZE, FEAT_SIZE
    column, row = int(point[0] * w / width), int(point[1] * h / height)
    query = src[:, row, column] / src[:, row, column].norm()
    similarity = {(x, y): float(query @ trg[:, y, x] / trg[:, y, x].norm()) for y in range(h) for x in range(w)}
    x0, y0 = max(similarity, key=similarity.get)
    weights = {}
    for (x, y), value in similarity.items():
        if window > 0:
            value *= abs(x - x0) <= window and abs(y - y0) <= window
        elif window < 0:
            value *= math.exp(-((x - x0) ** 2 + (y - y0) ** 2) / (2 * window**2))
        weights[x, y] = math.exp(value / beta)
    total = sum(weights.values())
    mean = [sum(weight * cell[axis] for cell, weight in weights.items()) / total for axis in (0, 1)]
    return (mean[0] + 0.5) * width / w, (mean[1] + 0.5) * height / h


@pytest.mark.parametrize("window", [7, 2, 1, 0, -1, -3])
@pytest.mark.parametrize("beta", [0.02, 0.3])
def test_window_equals_plain_loops(window, beta):
    src, trg, kps = make_pair(n=5)
    kps[0, 0], kps[0, 1] = torch.tensor([0.0, 0.0]), torch.tensor([95.0, 63.0])
    kps[0, 2] = torch.tensor([96 * 4 / 13, 64 * 2 / 9])  # on the border of two cells
    found = localise(src, trg, kps, IMAGE_SIZE, names=["window"], beta=beta, window=window)["window"]
    for b in range(2):
        expected = [match_as_geoaware(src[b], trg[b], point, window, beta) for point in kps[b].double().tolist()]
        torch.testing.assert_close(found[b], torch.tensor(expected), atol=2e-3, rtol=0)


def test_window_reads_the_cell_that_a_point_lies_in_and_answers_with_centres():
    """60 x 60 cells of 14 px in 840 px: a point anywhere in a cell is sent to that cell's centre."""
    feat = torch.randn(1, 256, 60, 60, generator=torch.Generator().manual_seed(0))
    kps = torch.tensor([[[0.0, 0.0], [13.9, 14.0], [14.0, 27.99], [839.0, 420.0]]])
    found = localise_similarity(FeatureSimilarity(feat, feat), kps, (840, 840), ["window"], beta=0.02)["window"]
    assert found[0].round(decimals=2).tolist() == [[7, 7], [7, 21], [21, 21], [833, 427]]


def test_window_without_a_frame_answers_in_cells():
    feat = torch.randn(1, 256, *FEAT_SIZE, generator=torch.Generator().manual_seed(0))
    query = Query(FeatureSimilarity(feat, feat), torch.tensor([[[2.4, 3.6], [12.0, 8.0]]]), beta=0.02)
    torch.testing.assert_close(LOCALISERS["window"](query), torch.tensor([[[2.0, 4.0], [12.0, 8.0]]]))


# --- batches and precision ---


def test_batch_of_two_is_two_batches_of_one():
    src, trg, kps = make_pair()
    both = localise(src, trg, kps, IMAGE_SIZE)
    for b in range(2):
        single = localise(src[b : b + 1], trg[b : b + 1], kps[b : b + 1], IMAGE_SIZE)
        for name in ON_CORNERS:
            torch.testing.assert_close(both[name][b], single[name][0], atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_maps_are_correlated_in_float32(dtype):
    src, trg, kps = make_pair(dtype=dtype)
    src, trg = src * 1000, trg * 1000  # squared norms overflow float16
    expected = localise(src.float(), trg.float(), kps, IMAGE_SIZE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = localise(src, trg, kps, IMAGE_SIZE)
    for name in ON_CORNERS:
        assert found[name].dtype == torch.float32 and found[name].isfinite().all()
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-4)


def test_names_choose_the_localisers_and_unknown_ones_list_the_known():
    src, trg, kps = make_pair()
    assert list(localise(src, trg, kps, IMAGE_SIZE, names=("softmax", "nn"))) == ["softmax", "nn"]
    with pytest.raises(ValueError, match=r"\['middle'\].*nn.*bilinear.*softmax.*kernelsoftmax.*window"):
        localise(src, trg, kps, IMAGE_SIZE, names=["nn", "middle"])


def test_a_new_localiser_is_a_function_and_a_line(monkeypatch):
    monkeypatch.setitem(LOCALISERS, "middle", lambda query: torch.full_like(query.query_cell, 4.0))
    predicted = localise(*make_pair(), IMAGE_SIZE, names=["middle"])["middle"]
    torch.testing.assert_close(predicted[0, 0], torch.tensor([4 * 95 / 12, 4 * 63 / 8]))
