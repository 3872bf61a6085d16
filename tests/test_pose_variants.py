"""GeoAware-SC's losses against plain loops over their formulas."""

import math

import pytest
import torch

from loss import LOSSES
from loss.pose_variants import LABELS, Points, PoseVariants, match_mirrored, mirror
from loss.soft_argmax_error import SoftArgmaxError, patch_of
from loss.sparse_contrastive import sparse_contrastive
from utils.localise import FeatureSimilarity
from utils.noise import derive_seeds, draw_noise

SIZE, GRID = (84, 84), (6, 6)  # px, patches
TAU = torch.tensor(9.0)
DENSE = SoftArgmaxError(0.3)


def make_maps(*names, batch=3, channels=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(batch, channels, *GRID, generator=generator).double() for name in names}


def unit(feat, col, row):
    return feat[:, row, col] / feat[:, row, col].norm()


def plain_dense(src, trg, src_kps, trg_kps, beta, window=0):
    """Of one pair: the mean over its keypoints of |e - floor(p1) - (p2 - p1)|, by the definition."""
    (h, w), errors = GRID, []
    for (x1, y1), (x2, y2) in zip(src_kps.tolist(), trg_kps.tolist(), strict=True):
        u1, r1, u2, r2 = x1 * w / SIZE[1], y1 * h / SIZE[0], x2 * w / SIZE[1], y2 * h / SIZE[0]
        col, row = min(int(u1), w - 1), min(int(r1), h - 1)
        cells = [(j, i) for i in range(h) for j in range(w)]
        sims = [float(unit(src, col, row) @ unit(trg, *cell)) for cell in cells]
        top = cells[max(range(len(cells)), key=sims.__getitem__)]
        if window > 0:
            sims = [
                s * (max(abs(c[0] - top[0]), abs(c[1] - top[1])) <= window) for s, c in zip(sims, cells, strict=True)
            ]
        if window < 0:
            squares = [(c[0] - top[0]) ** 2 + (c[1] - top[1]) ** 2 for c in cells]
            sims = [s * math.exp(-d / (2 * window**2)) for s, d in zip(sims, squares, strict=True)]
        weights = [math.exp(s / beta) for s in sims]
        e = [sum(p * c[axis] for p, c in zip(weights, cells, strict=True)) / sum(weights) for axis in (0, 1)]
        errors.append(math.hypot(e[0] - col - (u2 - u1), e[1] - row - (r2 - r1)))
    return sum(errors) / len(errors) if errors else 0.0


def plain_sparse(src, trg, src_kps, trg_kps, tau):
    """Of one pair: the mean of both directions' cross-entropies, by the definition."""
    points = [patch_of(kps, SIZE, GRID).int().tolist() for kps in (src_kps, trg_kps)]
    d1, d2 = ([unit(feat, *cell) for cell in cells] for feat, cells in zip((src, trg), points, strict=True))
    total = 0.0
    for one, other in ((d1, d2), (d2, d1)):
        for i, query in enumerate(one):
            logits = [float(tau * (query @ key)) for key in other]
            total += math.log(sum(map(math.exp, logits))) - logits[i]
    return 0.5 * total / len(d1) if d1 else 0.0


def make_batch(seed=1, counts=(4, 2, 3)):
    """Pairs whose keypoints 0..4 are (0 1)(2)(3 4) under mirroring; each image shows some of them."""
    generator = torch.Generator().manual_seed(seed)
    n, partners = 6, [1, 0, 2, 4, 3]
    batch = {name: torch.zeros(3, n, 2).double() for name in ("src_kps", "trg_kps", "src_seen", "trg_seen")}
    batch |= {name: torch.full((3, n), -1) for name in ("src_seen_ids", "trg_seen_ids", "src_seen_partner")}
    batch["kps_mask"] = torch.arange(n) < torch.tensor(counts)[:, None]
    seen = {"src": ((0, 1, 2, 4), (0, 2), (3, 0, 1)), "trg": ((0, 1, 2, 3), (0, 2), (3, 0, 1))}
    for side, images in seen.items():
        for b, ids in enumerate(images):
            batch[f"{side}_seen"][b, : len(ids)] = torch.rand(len(ids), 2, generator=generator).double() * 83
            batch[f"{side}_seen_ids"][b, : len(ids)] = torch.tensor(ids)
            batch[f"{side}_kps"][b] = torch.rand(n, 2, generator=generator).double() * 83
    for b, ids in enumerate(seen["src"]):
        batch["src_seen_partner"][b, : len(ids)] = torch.tensor([partners[i] for i in ids])
    batch |= {"kps_ids": batch["src_seen_ids"], "kps_partner": batch["src_seen_partner"]}
    batch["seen_known"] = torch.tensor([True, True, True])
    batch["pck_threshold"], batch["src_threshold"] = torch.tensor([40.0, 60.0, 50.0]), torch.tensor([30.0, 20.0, 70.0])
    return batch


def valid(batch, b, *names):
    return [batch[name][b, : int(batch["kps_mask"][b].sum())] for name in names]


@pytest.mark.parametrize("window", [0, 1, 2, -1.5])
def test_dense_error_is_the_formula(window):
    maps, batch = make_maps("src", "trg"), make_batch(counts=(4, 0, 6))
    loss = LOSSES["soft_argmax_error"](beta=0.3, window=window)
    args = batch["src_kps"], batch["trg_kps"], batch["kps_mask"], SIZE
    found = loss(FeatureSimilarity(maps["src"], maps["trg"]), *args)
    expected = [
        plain_dense(maps["src"][b], maps["trg"][b], *valid(batch, b, "src_kps", "trg_kps"), 0.3, window)
        for b in range(3)
    ]
    torch.testing.assert_close(found, torch.tensor(expected).double(), rtol=1e-5, atol=1e-6)
    assert found[1] == 0


def test_window_lets_gradients_through_only_inside():
    maps = make_maps("src", "trg", batch=1)
    trg = maps["trg"].requires_grad_()
    one = torch.tensor([[[30.0, 30.0]]]).double()
    SoftArgmaxError(0.1, window=1)(
        FeatureSimilarity(maps["src"], trg), one, one, torch.ones(1, 1).bool(), SIZE
    ).backward()
    assert 0 < (trg.grad.abs().sum(dim=1) > 0).sum() <= 9


def test_true_flow_is_continuous_and_the_predicted_starts_at_the_whole_patch():
    """A sharp peak at the target's patch is no error if both points lie equally deep in their patches."""
    src, trg = torch.zeros(1, 36, 6, 6), torch.eye(36).reshape(1, 36, 6, 6)
    src[0, 15] = 1.0  # every source cell looks like the cell (3, 2) of the target
    points = [
        torch.tensor([[[14.0 * col + dx, 14.0 * row + 9]]]) for col, row, dx in ((1, 4, 5), (3, 2, 5), (3, 2, 12))
    ]
    loss = [
        SoftArgmaxError(0.01)(FeatureSimilarity(src, trg), points[0], end, torch.ones(1, 1).bool(), SIZE)
        for end in points[1:]
    ]
    assert loss[0].item() == pytest.approx(0, abs=1e-4) and loss[1].item() == pytest.approx(7 / 14, abs=1e-4)


def test_sparse_term_is_the_formula():
    maps, batch = make_maps("src", "trg"), make_batch(counts=(4, 0, 6))
    patches = {side: patch_of(batch[f"{side}_kps"], SIZE, GRID).int().tolist() for side in maps}
    sides = [
        torch.stack([torch.stack([unit(feats[b], *cell) for cell in patches[side][b]]) for b in range(3)])
        for side, feats in maps.items()
    ]
    found = sparse_contrastive(*sides, batch["kps_mask"], TAU)
    expected = [
        plain_sparse(maps["src"][b], maps["trg"][b], *valid(batch, b, "src_kps", "trg_kps"), 9.0) for b in range(3)
    ]
    torch.testing.assert_close(found, torch.tensor(expected).double(), rtol=1e-5, atol=1e-6)


def plain_total(variants, maps, batch, b):
    """Of one pair without label noise: terms one after the other, points matched by their ids."""
    width, partners = SIZE[1], [1, 0, 2, 4, 3]

    def shown(side):
        ids = [i for i in batch[f"{side}_seen_ids"][b].tolist() if i >= 0]
        return {i: batch[f"{side}_seen"][b, place] for place, i in enumerate(ids)}

    def flip(point):
        return torch.stack((width - point[0], point[1]))

    pairs = list(zip(*valid(batch, b, "src_kps", "trg_kps"), strict=True))
    src, trg, mirrored = shown("src"), shown("trg"), {partners[i]: flip(point) for i, point in shown("src").items()}
    terms = [
        (1.0, "src", "trg", pairs),
        (variants.double, "src_mirrored", "trg_mirrored", [(flip(p), flip(q)) for p, q in pairs]),
        (variants.alone, "src_mirrored", "src", [(mirrored[i], src[i]) for i in mirrored if i in src]),
        (variants.single, "src_mirrored", "trg", [(mirrored[i], trg[i]) for i in mirrored if i in trg]),
    ]
    total = weights = 0.0
    for number, (weight, one, two, points) in enumerate(terms):
        if not points or not weight:
            continue
        args = maps[one][b], maps[two][b], *map(torch.stack, zip(*points, strict=True))
        value = variants.dense * plain_dense(*args, 0.3) if variants.dense else 0.0
        if number == 0 or not variants.dense:
            value += variants.sparse * plain_sparse(*args, 9.0)
        total, weights = total + weight * value, weights + weight
    return total / weights if weights else 0.0


@pytest.mark.parametrize(
    "weights",
    [
        {},
        {"single": 1.0},
        {"double": 0.0},
        {"alone": 0.0},
        {"double": 0.0, "alone": 0.0},
        {"dense": 0.0, "single": 0.5},
        {"sparse": 0.3, "dense": 2.0},
    ],
)
def test_total_is_the_weighted_mean_over_the_terms_that_are_there(weights):
    maps = make_maps("src", "trg", "src_mirrored", "trg_mirrored")
    batch, seeds = make_batch(counts=(4, 0, 3)), torch.tensor([5, 6, 7])
    batch["src_seen_partner"][1], batch["src_seen_ids"][1] = -1, -1  # nothing is known of the second pair
    variants = PoseVariants(noise=0.0, **weights)
    found = variants(DENSE, maps, batch, seeds, TAU, SIZE)
    expected = [plain_total(variants, maps, batch, b) for b in range(3)]
    torch.testing.assert_close(found, torch.tensor(expected).double(), rtol=1e-5, atol=1e-6)
    assert found[1] == 0


def test_without_weights_no_mirrored_image_is_asked_for():
    variants = PoseVariants(double=0.0, alone=0.0)
    assert variants.needs == ("src", "trg")
    assert PoseVariants(double=0.0, alone=0.0, single=1.0).needs == ("src", "trg", "src_mirrored")
    assert PoseVariants(alone=0.0).needs == ("src", "trg", "src_mirrored", "trg_mirrored")
    assert variants(DENSE, make_maps("src", "trg"), make_batch(), torch.tensor([1, 2, 3]), TAU, SIZE).isfinite().all()


def test_parts_change_sides_in_the_mirrored_source():
    batch = make_batch()
    batch["src_seen_ids"][0] = torch.tensor([0, 1, 2, 4, -1, -1])
    points = match_mirrored(batch, "src", 84)
    assert points.mask[0].tolist() == [True, True, True, False, False, False]  # 4 has no partner in sight
    x = batch["src_seen"][0, :, 0]
    assert points.src[0, :3, 0].tolist() == (84 - x[:3]).tolist()
    assert points.trg[0, :3].tolist() == batch["src_seen"][0, [1, 0, 2]].tolist()
    assert points.extent.tolist() == [30.0, 20.0, 70.0]
    single = match_mirrored(batch, "trg", 84)  # the target shows 0 1 2 3
    assert single.mask[0].tolist() == [True, True, True, True, False, False]
    assert single.trg[0, :4].tolist() == batch["trg_seen"][0, [1, 0, 2, 3]].tolist()
    assert single.extent.tolist() == [40.0, 60.0, 50.0]


def test_where_annotations_do_not_say_what_an_image_shows_the_shared_keypoints_count():
    batch = make_batch()
    batch["seen_known"][0] = False
    batch["kps_ids"], batch["kps_partner"] = torch.full((3, 6), -1), torch.full((3, 6), -1)
    batch["kps_ids"][0, :3], batch["kps_partner"][0, :3] = torch.tensor([4, 3, 2]), torch.tensor([3, 4, 2])
    points = match_mirrored(batch, "trg", 84)
    assert points.mask[0].tolist() == [True] * 3 + [False] * 3
    assert points.trg[0, :3].tolist() == batch["trg_kps"][0, [1, 0, 2]].tolist()
    assert points.src[0, :3, 0].tolist() == (84 - batch["src_kps"][0, :3, 0]).tolist()
    assert torch.equal(points.trg[1:], match_mirrored(make_batch(), "trg", 84).trg[1:])


def test_mirrored_twice_is_where_it_was_and_the_border_stays_in_the_grid():
    kps = torch.tensor([[0.0, 0.0], [84.0, 83.0], [20.5, 30.0]])
    assert torch.equal(mirror(mirror(kps, 84), 84), kps)
    assert patch_of(mirror(kps, 84), SIZE, GRID).tolist() == [[5, 0], [0, 5], [4, 2]]


def test_label_noise_has_the_deviation_it_should_and_moves_labels_alone():
    batch = make_batch()
    variants = PoseVariants(noise=0.1, double=0.0, alone=0.0)
    kps, extent = torch.zeros(200, 30, 2), torch.tensor([60.0, 240.0]).repeat(100)
    noise = variants.draw_noise(Points(kps, kps, kps[..., 0] == 0, extent), torch.arange(200))
    for number, sigma in enumerate((3.0, 12.0)):  # 0.1 T / 2
        drawn = noise[number::2]
        assert drawn.std().item() == pytest.approx(sigma, rel=0.05) and abs(drawn.mean().item()) < sigma / 20
    maps, seeds = make_maps("src", "trg"), torch.tensor([5, 6, 7])
    noisy = variants(DENSE, maps, batch, seeds, TAU, SIZE)
    moved = {
        **batch,
        "trg_kps": batch["trg_kps"]
        + 0.05 * batch["pck_threshold"][:, None, None] * draw_noise(derive_seeds(seeds, LABELS), (6, 2)),
    }
    plain = PoseVariants(noise=0.0, double=0.0, alone=0.0, sparse=0.0)
    sparse = PoseVariants(noise=0.0, double=0.0, alone=0.0, dense=0.0)
    expected = plain(DENSE, maps, moved, seeds, TAU, SIZE) + sparse(DENSE, maps, batch, seeds, TAU, SIZE)
    torch.testing.assert_close(noisy, expected)
    values = [variants(DENSE, maps, batch, seeds + k, TAU, SIZE) for k in (0, 0, 1)]
    assert torch.equal(values[0], values[1]) and not torch.equal(values[1], values[2])


def test_only_the_needed_rows_of_the_correlation_give_the_gradient_of_all():
    """Against the whole (h w) x (h w) soft-arg-max, indexed afterwards."""
    maps, batch = make_maps("src", "trg"), make_batch(counts=(6, 6, 6))
    maps = {name: value.requires_grad_() for name, value in maps.items()}
    args = batch["src_kps"], batch["trg_kps"], batch["kps_mask"], SIZE
    ours = SoftArgmaxError(0.3)(FeatureSimilarity(maps["src"], maps["trg"]), *args)
    d1, d2 = ((feat / feat.norm(dim=1, keepdim=True)).flatten(2) for feat in maps.values())
    p = (d1.transpose(1, 2) @ d2 / 0.3).softmax(dim=-1)  # every source patch
    cells = torch.tensor([(j, i) for i in range(6) for j in range(6)]).double()
    flow = p @ cells - cells
    u1, u2 = (kps * 6 / 84 for kps in args[:2])
    row = (u1[..., 1].floor() * 6 + u1[..., 0].floor()).long()
    plain = (flow.gather(1, row[..., None].expand(-1, -1, 2)) - (u2 - u1)).norm(dim=-1).mean(dim=1)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)
    for one, two in zip(*(torch.autograd.grad(loss.sum(), list(maps.values())) for loss in (ours, plain)), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)
