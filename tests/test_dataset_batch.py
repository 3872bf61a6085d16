"""From pair records to batches: frames, clamping, padding, thresholds, images, caches."""

import numpy as np
import pytest
import torch
from PIL import Image

from dataset import DatasetError, ImageRef, MissingDataError, build_benchmark
from dataset.pair_dataset import ImageDataset, PairDataset, collate, load_image, load_pil, pack_kps
from dataset.record import FLAGS
from tests.fixtures_dataset import SIZES, draw_image, object_points, tiny_pfpascal, tiny_pfwillow, tiny_spair
from utils.image import read_image


@pytest.fixture
def spair(tmp_path):
    return build_benchmark("spair", tiny_spair(tmp_path), "trn")


def batch_of(dataset):
    return collate([dataset[i] for i in range(len(dataset))])


def test_keys_shapes_and_types(spair):
    batch = batch_of(PairDataset(spair, (96, 80)))
    assert batch["pair_id"] == [record.pair_id for record in spair]
    assert batch["category"] == ["bird"] * 3 + ["cat"] * 3
    assert batch["src_identifier"][:2] == ["bird-2008_000000", "bird-2008_000001"]
    shapes = {key: (tuple(v.shape), v.dtype) for key, v in batch.items() if isinstance(v, torch.Tensor)}
    assert shapes == {
        "index": ((6,), torch.int64),
        "src_kps": ((6, 30, 2), torch.float32),
        "trg_kps": ((6, 30, 2), torch.float32),
        "trg_kps_orig": ((6, 30, 2), torch.float32),
        "kps_mask": ((6, 30), torch.bool),
        "src_size": ((6, 2), torch.int64),
        "trg_size": ((6, 2), torch.int64),
        "src_threshold": ((6,), torch.float32),
        "kps_ids": ((6, 30), torch.int64),
        "kps_partner": ((6, 30), torch.int64),
        "kps_aware": ((6, 30), torch.bool),
        "seen_known": ((6,), torch.bool),
        "src_azimuth": ((6,), torch.int64),
        "trg_azimuth": ((6,), torch.int64),
        "src_seen": ((6, 30, 2), torch.float32),
        "trg_seen": ((6, 30, 2), torch.float32),
        "src_seen_orig": ((6, 30, 2), torch.float32),
        "trg_seen_orig": ((6, 30, 2), torch.float32),
        "src_seen_ids": ((6, 30), torch.int64),
        "trg_seen_ids": ((6, 30), torch.int64),
        "src_seen_partner": ((6, 30), torch.int64),
        "trg_seen_partner": ((6, 30), torch.int64),
        "pck_threshold": ((6,), torch.float32),
        "pck_threshold_orig": ((6,), torch.float32),
    }
    assert batch["index"].tolist() == list(range(6))
    assert set(batch["flags"]) == set(FLAGS) and batch["flags"]["truncation"].tolist() == [2] * 6
    assert batch["flags"]["mirror"].dtype == torch.int64
    assert batch["src_size"][:3].tolist() == [list(size) for size in SIZES]


def test_keypoints_scaled_per_axis_and_padded(spair):
    batch = batch_of(PairDataset(spair, (96, 80)))
    for i, record in enumerate(spair):
        for side in ("src", "trg"):
            kps, size = getattr(record, f"{side}_kps"), getattr(record, side).size
            for n, (x, y) in enumerate(kps):
                expected = [x * 80 / size[1], y * 96 / size[0]]
                assert batch[f"{side}_kps"][i, n].tolist() == pytest.approx(expected, abs=1e-4)
            assert not batch[f"{side}_kps"][i, len(kps) :].any()
        assert batch["trg_kps_orig"][i, : len(kps)].tolist() == record.trg_kps.tolist()
        assert batch["kps_mask"][i].tolist() == [n < len(kps) for n in range(30)]


def test_original_points_and_thresholds_are_not_clamped(spair):
    spair._table.kps[:, 1] = 1000
    batch = batch_of(PairDataset(spair, 64))
    assert batch["trg_kps_orig"][0, 0].tolist() == [1000, 1000]
    assert batch["trg_kps"].max() < 63


def test_pack_kps():
    assert pack_kps(torch.ones(2, 2), 3).tolist() == [[1, 1], [1, 1], [0, 0]]
    assert pack_kps(torch.zeros(0, 2), 2).shape == (2, 2)


def test_bbox_threshold_in_both_frames(spair):
    batch = batch_of(PairDataset(spair, (48, 192)))
    x1, y1, x2, y2 = spair[0].trg_bbox  # target of size (72, 56): higher than wide, but wider once resized
    assert y2 - y1 > x2 - x1
    assert batch["pck_threshold_orig"][0].item() == y2 - y1
    assert batch["pck_threshold"][0].item() == pytest.approx((x2 - x1) * 192 / 56)


def test_image_threshold_in_both_frames(tmp_path):
    benchmark = build_benchmark("pfpascal", tiny_pfpascal(tmp_path), "val")
    batch = batch_of(PairDataset(benchmark, (96, 80)))
    assert batch["pck_threshold"].tolist() == [96, 96]
    assert batch["pck_threshold_orig"].tolist() == [max(SIZES[2])] * 2
    assert batch["flags"]["mirror"].tolist() == [-1, -1]
    assert batch["trg_kps"].shape == (2, 20, 2)


def test_kps_threshold_in_both_frames(tmp_path):
    benchmark = build_benchmark("pfwillow", tiny_pfwillow(tmp_path), "test")
    batch = batch_of(PairDataset(benchmark, (96, 80)))
    kps = object_points(SIZES[1], 10)
    assert batch["pck_threshold_orig"][0].item() == np.ptp(kps, axis=0).max()
    scaled = kps * (80 / SIZES[1][1], 96 / SIZES[1][0])
    assert batch["pck_threshold"][0].item() == pytest.approx(np.ptp(scaled, axis=0).max(), rel=1e-6)
    assert batch["kps_mask"].all() and batch["kps_mask"].shape == (4, 10)


def test_no_image_is_decoded_unless_asked(spair):
    for ref in spair.images():
        open(ref.path, "wb").close()
    assert "src_img" not in batch_of(PairDataset(spair, 32))
    with pytest.raises(DatasetError, match="the file is empty"):
        PairDataset(spair, 32, with_images=True)[0]


def test_images_in_a_batch(spair):
    batch = batch_of(PairDataset(spair, (32, 40), with_images=True))
    assert batch["src_img"].shape == batch["trg_img"].shape == (6, 3, 32, 40)
    assert batch["trg_img"].dtype == torch.float32
    torch.testing.assert_close(batch["trg_img"][0], load_image(spair[0].trg, (32, 40)))


def test_load_image_values(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (20, 10), (0, 127, 255)).save(path)
    image = load_image(ImageRef("a", str(path), "a", (10, 20)), 16)
    expected = torch.tensor([-1, 127 / 127.5 - 1, 1])[:, None, None].expand(3, 16, 16)
    torch.testing.assert_close(image, expected)


def test_load_image_resizes_as_torchvision(tmp_path):
    transforms = pytest.importorskip("torchvision.transforms.functional")
    path = tmp_path / "a.png"
    draw_image(path, (60, 90))
    ref = ImageRef("a", str(path), "a", (60, 90))
    for size in [(24, 31), (128, 100)]:
        resized = transforms.resize(transforms.to_tensor(load_pil(ref)), list(size), antialias=True)
        torch.testing.assert_close(load_image(ref, size), resized * 2 - 1)


def test_mirrored_image_and_its_points(tmp_path):
    root = tiny_pfpascal(tmp_path)
    plain, flipped = list(build_benchmark("pfpascal", root, "trn"))[:2]
    a, b = np.array(load_pil(plain.src)), np.array(load_pil(flipped.src))
    np.testing.assert_array_equal(b, a[:, ::-1])
    for (x, y), (mx, my) in zip(plain.src_kps.astype(int), flipped.src_kps.astype(int), strict=True):
        np.testing.assert_array_equal(a[y, x], b[my, mx])
    torch.testing.assert_close(load_image(flipped.src, 40), load_image(plain.src, 40).flip(-1))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "I;16"])
def test_any_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / "a.png"
    grey = (
        Image.fromarray(np.full((8, 9), 257 * 128, np.uint16)) if mode == "I;16" else Image.new("RGB", (9, 8), "white")
    )
    (grey if mode == "I;16" else grey.convert(mode)).save(path)
    image = load_pil(ImageRef("a", str(path), "a", (8, 9)))
    assert image.mode == "RGB" and np.unique(np.array(image)).tolist() == [128 if mode == "I;16" else 255]


def test_readers_and_matcher_see_the_same_pixels(tmp_path):
    """EXIF orientation is heeded, and an annotation that counts the stored pixels is told apart."""
    path, exif = tmp_path / "a.jpg", Image.Exif()
    exif[0x0112] = 6
    draw_image(path, (40, 64))
    with Image.open(path) as image:
        image.save(path, exif=exif)
    upright = load_pil(ImageRef("a", str(path), "a", (64, 40)))
    assert np.array_equal(np.array(upright), np.array(read_image(path).image)) and upright.size == (40, 64)
    with pytest.raises(DatasetError, match=r"\(64, 40\), its annotation says \(40, 64\); .*after its EXIF orientation"):
        load_pil(ImageRef("a", str(path), "a", (40, 64)))


def test_unreadable_images(tmp_path):
    path = tmp_path / "a.jpg"
    draw_image(path, (64, 64))
    content = path.read_bytes()
    ref = ImageRef("a", str(path), "a", (64, 64))
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DatasetError, match=r"a.jpg is damaged and cannot be decoded"):
        load_pil(ref)
    path.write_bytes(b"<html>")
    with pytest.raises(DatasetError, match=r"a.jpg cannot be opened: not an image"):
        load_image(ref, 32)
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"size \(H, W\) = \(64, 64\), its annotation says \(64, 65\)$"):
        load_pil(ImageRef("a", str(path), "a", (64, 65)))
    path.unlink()
    with pytest.raises(MissingDataError, match="a.jpg: no such image"):
        load_pil(ref)


def test_caches(spair):
    cache = {ref.identifier: torch.full((2, 3), n, dtype=torch.half) for n, ref in enumerate(spair.images())}
    batch = batch_of(PairDataset(spair, 32, {"condition": cache, "posterior": cache}))
    assert batch["src_condition"].shape == (6, 2, 3) and batch["src_condition"].dtype == torch.half
    assert batch["src_condition"][:, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert batch["trg_posterior"][:, 0, 0].tolist() == [1, 2, 0, 4, 5, 3]
    del cache["cat-2008_000001"]
    with pytest.raises(DatasetError, match="cache 'condition' lacks 1 of 6 images, for instance 'cat-2008_000001'"):
        PairDataset(spair, 32, {"condition": cache})
    with pytest.raises(DatasetError, match="cache 'condition' lacks 1 of 6"):
        ImageDataset(spair.images(), {"condition": cache})


def test_image_dataset(spair):
    refs = spair.images()[3:]
    cache = {ref.identifier: torch.tensor([float(n)]) for n, ref in enumerate(refs)}
    batch = batch_of(ImageDataset(refs, {"moments": cache}))
    assert batch["identifier"] == [ref.identifier for ref in refs] and batch["category"] == ["cat"] * 3
    assert batch["moments"].tolist() == [[0], [1], [2]]


def test_drop_padding_keeps_every_point(tmp_path):
    from dataset.pair_dataset import drop_padding

    data = PairDataset(build_benchmark("spair", tiny_spair(tmp_path), "trn"), (32, 48))
    batch = collate([data[0], data[1]])
    small = drop_padding(batch)
    used = int(batch["kps_mask"].sum(dim=1).max())
    assert small["kps_mask"].sum() == batch["kps_mask"].sum() and small["src_kps"].shape == (2, used, 2)
    assert torch.equal(small["trg_kps"], batch["trg_kps"][:, :used]) and small["pair_id"] == batch["pair_id"]
