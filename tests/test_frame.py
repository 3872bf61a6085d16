"""How images, points and boxes come into the network's frame and back."""

import numpy as np
import pytest
import torch
from PIL import Image

from dataset import build_benchmark
from dataset.pair_dataset import PairDataset, collate
from sd4match.pair import Pair, Setting
from tests.fixtures_dataset import tiny_spair
from utils.frame import EPS, FRAMES, Pad, Stretch, as_frame, build_frame
from utils.geometry import cell_grid, cell_to_px
from utils.image import read_image
from utils.pck import PCKEvaluator, compute_errors

SIZES = [(48, 64), (72, 56), (60, 60), (333, 500), (500, 331)]


def cross(size, place):
    """A black image of size (H, W) with a white dot of 5 px around `place` (x, y)."""
    pixels = np.zeros((*size, 3), np.uint8)
    x, y = place
    pixels[y - 2 : y + 3, x - 2 : x + 3] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("size", SIZES)
def test_points_and_boxes_come_back(name, size):
    frame = build_frame(name, (96, 160))
    points = torch.rand(7, 2, dtype=torch.float64) * torch.tensor(size).flip(0)
    px = frame.to_px(points, size)
    torch.testing.assert_close(frame.to_orig(px, size), points)
    torch.testing.assert_close(frame.box_to_px(points[:2].reshape(4), size), px[:2].reshape(4))
    assert frame.to_px(points.float(), size).dtype == torch.float32
    assert (px > -1).all() and (px < torch.tensor([161, 97])).all()


@pytest.mark.parametrize("name", FRAMES)
def test_a_size_for_each_image_of_a_batch(name):
    frame, points = build_frame(name, 96), torch.rand(len(SIZES), 4, 2)
    batched = frame.to_px(points, torch.tensor(SIZES))
    torch.testing.assert_close(batched, torch.stack([frame.to_px(*pair) for pair in zip(points, SIZES, strict=True)]))
    torch.testing.assert_close(frame.to_orig(batched, torch.tensor(SIZES)), points)


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("size", SIZES)
def test_pixels_lie_where_the_points_say(name, size):
    frame, place = build_frame(name, (240, 320)), (size[1] // 4, 2 * size[0] // 3)
    grey = frame.fit(cross(size, place)).mean(0) + 1
    assert grey.shape == (240, 320)
    y, x = torch.meshgrid(*(torch.arange(n).float() for n in grey.shape), indexing="ij")
    centre = torch.stack([(grey * x).sum(), (grey * y).sum()]) / grey.sum()
    assert (centre - frame.to_px(torch.tensor([place]).float(), size)[0]).abs().max() < 2.5  # half a pixel, enlarged


def test_pad_as_geoaware_does():
    """Known answers: one factor, the shorter side rounded to even halves, whole offsets rounded down."""
    frame = Pad((840, 840))
    assert frame.to_px(torch.tensor([[0.0, 0.0], [500.0, 333.0]]), (333, 500)).tolist() == [
        [0, 140],
        [840, pytest.approx(140 + 333 * 1.68, abs=1e-3)],
    ]
    assert frame.to_px(torch.zeros(1, 2), (500, 333)).tolist() == [
        [140, 0]
    ]  # 333 * 1.68 = 559.44 -> 559, (840 - 559) // 2
    assert frame.to_px(torch.ones(1, 2), (420, 420)).tolist() == [[2, 2]]
    # exact halves go to the even number: 39 * 840 / 624 = 52.5 -> 52, (840 - 52) // 2
    assert frame.to_px(torch.zeros(1, 2), (39, 624)).tolist() == [[0, 394]]
    assert (frame.fit(Image.new("RGB", (624, 39), "white"))[0, :, 0] == 1).sum() == 52
    image = frame.fit(Image.new("RGB", (500, 333), "white"))
    assert (image[:, :140] == -1).all() and (image[:, 140:699] == 1).all() and (image[:, 699:] == -1).all()
    assert frame.fit(Image.new("RGB", (1, 2000))).shape == (3, 840, 840)
    assert frame.aspect((333, 500)) == (840, 840) and Stretch((8, 8)).aspect((333, 500)) == (333, 500)


def test_stretch_as_sd4match_does():
    """Bit for bit: x W'/W and y H'/H in float32, clamped to [eps, W' - 1 - eps]."""
    frame, rng = Stretch((768, 640)), np.random.default_rng(0)
    for size in SIZES:
        kps = (rng.random((50, 2)) * 700 - 20).astype(np.float32)
        scale = np.array([640 / size[1], 768 / size[0]], np.float32)
        px = frame.to_px(torch.from_numpy(kps), size)
        assert np.array_equal(px.numpy(), kps * scale)
        last = np.array([639, 767], np.float32) - np.float32(EPS)
        assert np.array_equal(frame.clamp(px).numpy(), np.clip(kps * scale, np.float32(EPS), last))


def test_names_and_sizes():
    assert build_frame("pad", 8) == Pad((8, 8)) and as_frame((4, 6)) == Stretch((4, 6))
    with pytest.raises(ValueError, match="unknown frame 'crop'; known: stretch, bicubic, pad"):
        build_frame("crop", 8)
    for size in (0, (0, 5), (5, -1)):
        with pytest.raises(ValueError, match="image size must be positive"):
            as_frame(size)


def test_batches_and_scores_follow_the_frame(tmp_path):
    """A true point has no error in either protocol, and the threshold is the box of the frame."""
    benchmark = build_benchmark("spair", tiny_spair(tmp_path), "trn")
    pairs = PairDataset(benchmark, Pad((96, 80)), with_images=True)
    batch = collate([pairs[i] for i in range(len(pairs))])
    assert batch["src_img"].shape == (6, 3, 96, 80)
    for protocol in ("resized", "original"):
        errors = compute_errors(batch["trg_kps"], batch, protocol, pairs.frame)
        assert errors[batch["kps_mask"]].max() < 1e-4
    (x1, y1, x2, y2), (height, width) = benchmark[0].trg_bbox, benchmark[0].trg.size
    assert batch["pck_threshold"][0] == pytest.approx(max(x2 - x1, y2 - y1) * min(96 / height, 80 / width), rel=1e-6)
    evaluator = PCKEvaluator(["nn"], [0.1], frame=pairs.frame)
    evaluator.update(batch, {"nn": batch["trg_kps"]})
    np.testing.assert_allclose(evaluator.scores().at[0, "point:nn"], benchmark[0].trg_kps, atol=1e-3)


@pytest.mark.parametrize("name", FRAMES)
def test_points_of_photos_follow_the_frame(name):
    """Equal feature maps send the centres of cells that lie in the photo to themselves."""
    frame, picture = build_frame(name, 64), read_image(np.zeros((30, 60, 3), np.uint8))
    feat = torch.randn(64, 8, 8, generator=torch.Generator().manual_seed(0))
    pair = Pair(picture, picture, feat, feat, Setting("nn", 0.04, 7.0, frame))
    centres = frame.to_orig(cell_to_px(cell_grid((8, 8), feat), (8, 8), (64, 64)), picture.size)
    inside = centres[((centres >= 0) & (centres <= torch.tensor([59, 29]))).all(dim=1)]
    assert len(inside) == {"stretch": 49, "bicubic": 49, "pad": 28}[name]
    np.testing.assert_allclose(pair.match(inside).points, inside, atol=1e-3)
