"""Adaptive pose alignment: distances and queries against plain loops, masks of every kind, mirrored pairs."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from config import ConfigError
from dataset import build_benchmark
from dataset.pair_dataset import PairDataset, collate
from dataset.record import ImageRef
from dataset.symmetry import SPAIR
from engine.align import Alignment, build_alignment
from engine.masks import Masks, name_mask, select_object, unpad
from tests.command import call
from tests.fixtures_dataset import SIZES, object_box, tiny_spair
from tests.test_symmetry import write_images
from utils.align import mask_distance, mirror_queries, mutual_distance
from utils.frame import Pad
from utils.localise import FeatureSimilarity, localise


def features(seed, channels=5, size=(6, 7)):
    return torch.randn(channels, *size, generator=torch.Generator().manual_seed(seed))


def unit(feat):
    return feat / (feat.norm(dim=0, keepdim=True) + 1e-6)


def test_mask_distance_against_a_loop():
    src, trg = features(0).relu(), features(1).relu()  # with true zeros, as descriptors of the post-processor have
    masks = torch.rand(2, 9, 8, generator=torch.Generator().manual_seed(2)) < 0.4
    resized = [
        torch.nn.functional.interpolate(unit(feat)[None], (9, 8), mode="bilinear", align_corners=False)[0]
        for feat in (src, trg)
    ]
    nearest = []
    for i, j in masks[0].nonzero().tolist():
        a = resized[0][:, i, j]
        nearest.append(min((a - resized[1][:, k, m]).norm().item() for k, m in masks[1].nonzero().tolist()))
    assert mask_distance(src, trg, *masks).item() == pytest.approx(np.mean(nearest), abs=1e-4)
    nothing = torch.zeros(9, 8, dtype=torch.bool)
    for pair in ((nothing, masks[1]), (masks[0], nothing)):
        assert mask_distance(src, trg, *pair) == torch.inf


def test_mutual_distance_against_a_loop():
    src, trg = features(3), features(4)
    a, b = (unit(feat).flatten(1).T for feat in (src, trg))
    distance = np.array([[(x - y).norm().item() for y in b] for x in a])
    mutual = [distance[i].min() for i in range(len(a)) if distance[:, distance[i].argmin()].argmin() == i]
    assert mutual_distance(src, trg).item() == pytest.approx(np.mean(mutual), abs=1e-4)
    assert mutual_distance(src, src).item() == pytest.approx(0, abs=1e-2)


def test_queries_and_what_is_replaced():
    """A cat: eyes' corners 4, 5 are partners, so are 0, 1; 8 has none. The pair shows 0, 4, 5 and 8."""
    ids = torch.tensor([[0, 4, 5, 8, -1]])
    partner = torch.tensor([[*SPAIR["cat"].partners([0, 4, 5, 8]), -1]])
    kps = torch.tensor([[[10.0, 1], [20, 2], [30, 3], [0, 4], [0, 0]]])
    query, replaced = mirror_queries(kps, ids >= 0, ids, partner, 100)
    assert query[0, :4].tolist() == [[90, 1], [70, 3], [80, 2], [99, 4]]  # 0 at itself: 1 is hidden; 100 is outside
    assert replaced[0].tolist() == [False, True, True, True, False]


def similarity(src, trg):
    return FeatureSimilarity(src[None], trg[None])


@pytest.mark.parametrize("kind", ["mask", "mutual_nn"])
def test_a_mirrored_source_is_recognised_and_its_points_are_found(kind):
    """The target is the mirrored source: aligned, every point is found, but where its partner is not shown."""
    src, trg = features(5, channels=24, size=(12, 12)), features(6, channels=24, size=(12, 12))

    class Whole:
        def read(self, name):
            return torch.ones(12, 12, dtype=torch.bool)

    alignment = Alignment(Whole() if kind == "mask" else None, 120)
    ids = torch.tensor([[0, 4, 5, 8]])
    partner = torch.from_numpy(SPAIR["cat"].partners([0, 4, 5, 8]))[None]
    cells = torch.tensor([[[1.0, 2], [3, 4], [9, 4], [5, 8]]])
    batch = {
        **{"index": torch.tensor([0]), "src_identifier": ["a"], "trg_identifier": ["b"]},
        **{"kps_ids": ids, "kps_partner": partner, "kps_mask": ids >= 0, "src_kps": cells * 119 / 11},
        "mirrored": similarity(trg, trg),  # networks see another image in it: the map is not the source's, mirrored
    }

    def find(sim, points):
        return localise(sim, points, (120, 120), ("nn",))

    plain = find(similarity(src, trg), batch["src_kps"])
    found, columns = alignment.predict(batch, similarity(src, trg), find, plain)
    assert columns == {"mirrored": [1]}
    at_partner = 11 - cells[0, [2, 1, 3], 0]
    assert torch.allclose((found["nn"][0, 1:, 0] * 11 / 119).round(), at_partner)
    assert torch.allclose((found["nn"][0, 1:, 1] * 11 / 119).round(), cells[0, [2, 1, 3], 1])
    assert torch.equal(found["nn"][0, 0], plain["nn"][0, 0])  # its partner is not shown: as without alignment
    batch["mirrored"] = similarity(trg, src)
    same, columns = alignment.predict(batch, similarity(src, src), find, plain)
    assert columns == {"mirrored": [0]} and same is plain


def test_the_mask_of_the_source_is_mirrored_with_it_and_equals_stay():
    """The object fills the left of the source; mirrored, the right, and there it looks like the target's."""
    src, mirrored, trg = features(7, 24, (12, 12)), features(8, 24, (12, 12)), features(9, 24, (12, 12))
    src[..., :4] = trg[..., 8:] + 0.5 * features(10, 24, (12, 4))
    mirrored[..., 8:] = trg[..., 8:] + 0.1 * features(11, 24, (12, 4))
    left = torch.arange(12).expand(12, 12) < 4
    whole = torch.ones_like(left)
    batch = {"src_identifier": ["source"], "trg_identifier": ["target"]}

    def decide(masks, *maps):
        read = None if masks is None else type("Read", (), {"read": staticmethod(masks.__getitem__)})
        return Alignment(read, 120).is_nearer(batch, similarity(maps[0], trg), similarity(maps[1], trg), 0)

    masks = {"source": left, "target": left.flip(-1)}
    assert decide(masks, src, mirrored) and not decide(masks, mirrored.flip(-1), src.flip(-1))
    for masks in ({"source": whole, "target": whole}, None):  # equally near: as it is
        assert not decide(masks, src, src)


# Masks


def test_names_of_masks():
    def ref(path):
        return ImageRef("x", path, "cat", (4, 4))

    assert str(name_mask(ref("/d/SPair-71k/JPEGImages/cat/2008_1.jpg"))) == "cat/2008_1"
    assert str(name_mask(ref("/d/ap-10k/JPEGImages/Canidae/wolf/000000000001.jpg"))) == "Canidae/wolf/000000000001"
    assert str(name_mask(ref("/d/pf-willow/PF-dataset/car(G)/a.b.png"))) == "car(G)/a.b"


def test_the_object_of_a_segmentation_is_what_fills_its_box():
    labels = np.zeros((20, 20), np.uint8)
    labels[2:10, 2:10], labels[10:18, 10:18], labels[10, :] = 3, 3, 255
    labels[12:16, 2:10] = 7
    assert (select_object(labels, np.array([1, 11, 10, 17])) == (labels == 7)).all()
    assert (select_object(labels, np.array([1, 1, 10, 9])) == (labels == 3)).all()
    assert not select_object(labels, np.array([13, 1, 18, 8])).any()
    binary = np.where(labels == 7, 255, 0).astype(np.uint8)
    assert (select_object(binary, np.array([1, 11, 10, 17])) == (labels == 7)).all()


def test_masks_on_a_padded_square_are_brought_to_the_image():
    ref = ImageRef("x", "a/b/c.jpg", "cat", (30, 60))
    mask = np.zeros((30, 60), bool)
    mask[5:20, 10:25] = True
    canvas = (Pad((120, 120)).fit(Image.fromarray(mask).convert("RGB"))[0] > 0).numpy()
    assert canvas.shape == (120, 120) and (unpad(canvas, ref) == mask * 255).all()
    with pytest.raises(ConfigError, match=r"the mask of x has size .* make it again"):
        unpad(np.zeros((20, 60), bool), ref)


@pytest.fixture
def spair(tmp_path):
    root = tiny_spair(tmp_path)
    write_images(root)
    return root


def write_masks(folder, end=".png"):
    for category in ("bird", "cat"):
        for image, size in enumerate(SIZES):
            x1, y1, x2, y2 = object_box(size)
            mask = np.zeros(size, np.uint8)
            mask[y1 : y2 + 1, x1 : x2 + 1] = 255
            path = folder / category / f"2008_{image:06d}{end}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(path)


@pytest.mark.parametrize("end", [".png", "_mask.png"])
@pytest.mark.parametrize("own", [True, False])
def test_masks_of_a_data_set(spair, tmp_path, own, end):
    benchmark = build_benchmark("spair", spair, "test")
    folder = spair / "Segmentation" if own else tmp_path / "masks"
    source = "dataset" if own else str(folder)
    with pytest.raises(
        ConfigError, match=r"6 of 6 masks are missing, such as .*bird/2008_00000\d.png; .*make_masks.py"
    ):
        Masks(source, benchmark, Pad((64, 64)), (16, 16))
    write_masks(folder, end)
    masks = Masks(source, benchmark, Pad((64, 64)), (16, 16))
    mask = masks.read("bird-2008_000000")  # 48 x 64, padded above and below; the box leaves an eighth at each side
    assert mask.shape == (16, 16) and not mask[:3].any() and not mask[-3:].any() and mask[4:12, 3:13].all()
    before = masks.digest()
    Image.new("L", (64, 48)).save(folder / f"bird/2008_000000{end}")
    assert Masks(source, benchmark, Pad((64, 64)), (16, 16)).digest() != before


# Through the commands


def settings(world, *more):
    from config import load_config

    return load_config("config/spair/base.yaml", [*world, *more])


def test_what_alignment_needs_is_asked_for_at_once(spair, tmp_path):
    benchmark = build_benchmark("spair", spair, "test")
    pairs = PairDataset(benchmark, 64)
    cfg = settings(["POSE.ALIGN", "mutual_nn"])
    with pytest.raises(ConfigError, match="POSE.ALIGN mutual_nn: METHOD.NAME .* has no feature maps"):
        build_alignment(cfg, object, pairs)
    assert build_alignment(settings([]), object, pairs) is None
    (spair / "keypoints.json").write_text(json.dumps({"bird": {"flip": list(range(17)), "groups": []}}))
    from model.method.dinov2 import DINOv2

    pairs = PairDataset(build_benchmark("spair", spair, "test"), 64)
    with pytest.raises(ConfigError, match=r"which keypoints of 'cat' change places .* write .*keypoints.json"):
        build_alignment(cfg, DINOv2, pairs)


def test_batches_of_one_pair_and_many_are_alike(spair):
    batch = collate([PairDataset(build_benchmark("spair", spair, "test"), 64)[i] for i in range(4)])
    query, replaced = mirror_queries(*(batch[key] for key in ("src_kps", "kps_mask", "kps_ids", "kps_partner")), 64)
    one = mirror_queries(*(batch[key][2:3] for key in ("src_kps", "kps_mask", "kps_ids", "kps_partner")), 64)
    assert torch.equal(query[2:3], one[0]) and torch.equal(replaced[2:3], one[1])


def test_masks_of_sam(spair, tmp_path, capsys):
    """A tiny SAM with random weights: the masks come out at the images' sizes, and are not made twice."""
    from transformers import SamConfig, SamImageProcessor, SamModel, SamProcessor

    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 64, "patch_size": 16}
    vision |= {"output_channels": 16, "mlp_dim": 16, "global_attn_indexes": [0], "window_size": 2, "num_pos_feats": 8}
    prompt = {"hidden_size": 16, "image_size": 64, "patch_size": 16}
    prompt |= {"image_embedding_size": 4, "mask_input_channels": 4}
    decoder = {"hidden_size": 16, "mlp_dim": 16, "num_hidden_layers": 1}
    decoder |= {"num_attention_heads": 2, "iou_head_hidden_dim": 8}
    config = SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    SamModel(config).save_pretrained(tmp_path / "sam")
    size = {"longest_edge": 64}, {"height": 64, "width": 64}
    SamProcessor(SamImageProcessor(size=size[0], pad_size=size[1])).save_pretrained(tmp_path / "sam")

    def run(*more):
        where = ("DATASET.ROOT", str(spair.parent), "OUTPUT_ROOT", str(tmp_path / "out"), "DEVICE", "cpu")
        return call("script/make_masks.py", "--out", tmp_path / "masks", *more, *where), capsys.readouterr()

    status, text = run("--sam", str(tmp_path / "sam"))
    assert status == 0 and "6 masks written" in text.out, text.err
    for image, (height, width) in enumerate(SIZES):
        found = Image.open(tmp_path / f"masks/cat/2008_{image:06d}.png")
        assert found.size == (width, height) and set(np.unique(found)) <= {0, 255}
    assert "0 masks written" in run("--sam", str(tmp_path / "sam"))[1].out
    Masks(str(tmp_path / "masks"), build_benchmark("spair", spair, "test"), Pad((64, 64)), (16, 16))
    status, text = run("--sam", str(tmp_path / "nowhere"))
    assert status in (1, 2) and "cannot be loaded as SAM" in text.err
