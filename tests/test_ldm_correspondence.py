"""LDM_correspondences: against a plain loop over points, rounds and steps; crops, blobs, read-out: known answers."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch.nn import functional as F

from config import ConfigError, load_config
from engine.check import check_config
from model.backbone.architecture import STABLE_DIFFUSION
from model.error import NetworkError
from model.method.embedding_store import EmbeddingStore, read_losses
from model.method.ldm_correspondence import OF_READING, LDMCorrespondence, Point
from model.method.point_embedding import CropLatents, Descent, PointReader, Reading, Rows, squared_error
from script.speed.plain_points import PlainPoints
from tests.command import call, run_test
from tests.test_train import launch
from tests.tiny import SD_CONFIG
from utils.crop import CropRule, bilinear_matrix
from utils.localise import LOCALISERS, Query
from utils.noise import derive_seeds, draw_noise, identifier_seed
from utils.store import StoreError

RELEASE = CropRule.from_shares(512, 93.16549294381423, 0.15)
SIDE, LAYERS, HEADS, TOKEN = 64, ("mid.0", "up1.0"), (1, 0), 3
DESCENT, READING = Descent(steps=3, lr=0.05, sigma=9.0, timestep=140, flip_prob=0.4), Reading(crops=6, timestep=40)
SHARES = (93.0, 0.15)


# ---- crops, blobs, read-out -----------------------------------------------------------------------------------


def test_crops_of_the_release():
    assert (RELEASE.side, RELEASE.margin) == (477, 71)
    starts = [RELEASE.draw(RELEASE.corners, torch.full((4, 2), chance)).tolist() for chance in (0.0, 0.999)]
    assert starts[0] == starts[1] == [[0, 0], [0, 35], [35, 0], [35, 35]]
    assert RELEASE.corners.tolist() == [[0, 0], [0, 512], [512, 0], [512, 512]]


@pytest.mark.parametrize(
    "x, least, greatest",
    [(71.9, 0, 0), (80, 0, 9), (106, 0, 35), (256, 0, 35), (406, 0, 35), (430, 24, 35), (441, 35, 35)],
)
def test_where_a_crop_may_begin(x, least, greatest):
    anchors = torch.tensor([[float(x), 256.0]])
    assert [int(value[0, 0]) for value in RELEASE.starts(anchors)] == [least, greatest]
    drawn = RELEASE.draw(anchors.expand(4000, 2), torch.rand(4000, 2, generator=torch.Generator().manual_seed(0)))
    assert sorted(set(drawn[:, 0].tolist())) == list(range(least, greatest + 1))


def test_the_bilinear_matrix_is_the_library_s_resizing():
    maps = torch.rand(1, 1, 16, 16)
    resize = bilinear_matrix(512, 16)
    expected = F.interpolate(maps, (512, 512), mode="bilinear", align_corners=False)
    torch.testing.assert_close(resize @ maps @ resize.T, expected)


def test_the_blob_has_peak_one_and_is_not_normalised():
    """The loss of an empty map is the mean square of the blob: of peak 1, exp(-1/2) at sigma, sum 2 pi sigma^2."""
    sigma, zero = 27.97853316316864, [torch.zeros(1, 16, 16)]
    (found,) = squared_error(zero, torch.tensor([[256.0, 200.0]]), sigma, 512)
    assert float(found) * 512**2 == pytest.approx(math.pi * sigma**2, rel=1e-4)  # the sum of the blob's square
    assert 2 * math.pi * sigma**2 == pytest.approx(4918, abs=1)
    axis = torch.arange(512.0)
    for shift, value in ((0.0, 1.0), (sigma, math.exp(-0.5))):
        flat = torch.exp(-((axis - 256.0 - shift) ** 2) / (2 * sigma**2))
        assert float(flat[256]) == pytest.approx(value)


def test_the_quadratic_form_is_the_squared_error_of_the_pixels():
    maps = [torch.rand(3, 16, 16), torch.rand(3, 32, 32)]
    centres, sigma = torch.tensor([[100.0, 400.5], [0.0, 511.0], [256.25, 13.0]]), 28.0
    axis = torch.arange(512.0)
    g_x, g_y = (torch.exp(-((axis - centres[:, i, None]) ** 2) / (2 * sigma**2)) for i in (0, 1))
    blob = g_y[:, :, None] * g_x[:, None, :]
    whole = torch.stack([F.interpolate(m[:, None], (512, 512), mode="bilinear")[:, 0] for m in maps], dim=1)
    direct = (whole.double() - blob[:, None].double()).square().mean(dim=(1, 2, 3))
    assert (squared_error(maps, centres, sigma, 512) - direct).abs().max() < 1e-7


def test_a_maximum_is_read_out_at_the_middle_of_its_pixel():
    sim = torch.zeros(1, 1, 512, 512)
    sim[0, 0, 10, 20] = 1.0

    class Map:
        src_size = (512, 512)

        def __call__(self, points):
            return sim

    assert LOCALISERS["centre"](Query(Map(), torch.zeros(1, 1, 2))).tolist() == [[[20.5, 10.5]]]


# ---- against the plain loop -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**SD_CONFIG["unet"]).requires_grad_(False).eval()
    vae = AutoencoderKL(**SD_CONFIG["vae"]).requires_grad_(False).eval()
    for name, weight in unet.named_parameters():  # attention that is not flat
        if name.endswith(("attn2.to_q.weight", "attn2.to_k.weight")):
            weight.mul_(3)
    return unet, vae, DDIMScheduler(**SD_CONFIG["scheduler"])


def build_reader(networks, rows_at_once=64):
    unet, vae, scheduler = networks
    rule = CropRule.from_shares(SIDE, *SHARES)
    return PointReader(
        unet,
        scheduler,
        CropLatents(vae, 0.18215, batch_size=5, kept=100),
        rule,
        layers=LAYERS,
        heads=HEADS,
        token=TOKEN,
        rows_at_once=rows_at_once,
    )


def build_plain(networks):
    unet, vae, scheduler = networks
    rule = CropRule.from_shares(SIDE, *SHARES)
    options = {"side": rule.side, "margin": rule.margin, "layers": LAYERS, "heads": HEADS, "token": TOKEN}
    return PlainPoints(unet, vae, scheduler, 0.18215, **options)


@pytest.fixture(scope="module")
def task():
    """Two images, rows of points on them, starting embeddings."""
    draw = torch.Generator().manual_seed(3)
    images = {key: torch.rand(3, SIDE, SIDE, generator=draw) * 2 - 1 for key in (11, 12)}
    rows = Rows((11, 12, 11), torch.tensor([[5.0, 40.0], [33.5, 60.0], [63.0, 30.25]]), torch.tensor([7, 8, 9]))
    return images, rows, draw_noise(derive_seeds(rows.seeds, 0), (77, 32))


def relative(found, expected):
    return float((found - expected).detach().abs().max() / expected.detach().abs().max())


@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float64, 2e-6), (torch.float32, 1e-5)], ids=["double", "single, with its rounding"]
)
def test_losses_and_gradients_are_those_of_the_plain_loop(networks, task, dtype, most):
    images, rows, start = task
    networks = tuple(copy.deepcopy(network).to(dtype) for network in networks[:2]) + networks[2:]
    images, start = {key: image.to(dtype) for key, image in images.items()}, start.to(dtype)
    reader, plain = build_reader(networks), build_plain(networks)
    for step in range(4):  # some of them mirrored
        embeddings = start.clone().requires_grad_()
        losses = reader.loss(images, rows, embeddings, DESCENT, step)
        (gradient,) = torch.autograd.grad(losses.sum(), embeddings)
        for i, key in enumerate(rows.keys):
            single = start[i].clone().requires_grad_()
            loss = plain.loss(images[key], rows.anchors[i], single, int(rows.seeds[i]), DESCENT, step)
            loss.backward()
            assert relative(losses[i], loss) < 2e-6
            assert relative(gradient[i], single.grad) < most


def test_embeddings_and_maps_are_those_of_the_plain_loop(networks, task):
    images, rows, start = task
    reader, plain = build_reader(networks), build_plain(networks)
    embeddings, losses = reader.find(images, rows, start, DESCENT)
    ((_, maps),) = reader.read(images, rows, start, READING)
    assert embeddings.shape == start.shape and losses.shape == (3, 3)
    for i, key in enumerate(rows.keys):
        expected = plain.find(images[key], rows.anchors[i], start[i], int(rows.seeds[i]), DESCENT)
        assert relative(losses[i], expected[1]) < 1e-5
        # Adam's first steps are +-lr whatever the size of a gradient: one that is nearly zero may differ in sign
        assert ((embeddings[i] - expected[0]).abs() < 1e-3).float().mean() > 0.99
        read = plain.read(images[key], start[i], int(rows.seeds[i]), READING)
        assert relative(maps[i], read) < 1e-5


def test_chunks_and_company_change_nothing(networks, task):
    images, rows, start = task
    whole = build_reader(networks)
    ((_, maps),) = whole.read(images, rows, start, READING)
    embeddings, _ = whole.find(images, rows, start, DESCENT)
    for size in (1, 2):
        reader = build_reader(networks, size)
        parts = list(reader.read(images, rows, start, READING))
        assert len(parts) == math.ceil(3 / size)
        torch.testing.assert_close(torch.cat([part for _, part in parts]), maps, rtol=1e-5, atol=1e-6)
        found, _ = reader.find(images, rows, start, DESCENT)
        assert ((found - embeddings).abs() < 1e-3).float().mean() > 0.99


def test_memory_that_runs_out_halves_the_rows(networks, task, monkeypatch):
    images, rows, start = task
    reader, maps = build_reader(networks), PointReader.maps

    def crowded(self, latents, *more):
        if len(latents) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return maps(self, latents, *more)

    expected, _ = reader.find(images, rows, start, DESCENT)
    monkeypatch.setattr(PointReader, "maps", crowded)
    found, _ = reader.find(images, rows, start, DESCENT)
    assert reader.rows_at_once == 1 and ((found - expected).abs() < 1e-3).float().mean() > 0.99


def test_a_crop_is_encoded_once(networks):
    _, vae, _ = networks
    latents, image = CropLatents(vae, 0.18215, batch_size=2, kept=3), torch.rand(3, SIDE, SIDE)
    calls, encode = [], latents._encode
    latents._encode = lambda images, crops: calls.append(len(crops)) or encode(images, crops)
    starts = torch.tensor([[0, 0], [1, 2], [0, 0], [3, 3]])
    first = latents.get({1: image}, (1, 1, 1, 1), starts, 59)
    again = latents.get({1: image}, (1, 1), starts[:2], 59)
    assert calls == [2, 1] and torch.equal(first[0], first[2]) and torch.equal(again, first[:2])
    latents.get({1: image}, (1,), torch.tensor([[4, 4]]), 59, torch.tensor([True]))
    assert len(latents._found) == 3


def build_method(networks, store=None, rounds=2, **options):
    return LDMCorrespondence(
        build_reader(networks), ("up1.1",), descent=DESCENT, reading=READING, rounds=rounds, store=store, **options
    )


def test_points_are_found_once_kept_and_taken_up_again(networks, task, tmp_path):
    images, *_ = task
    points = [Point(11, (5.0, 40.0), "a"), Point(12, (9.0, 9.0), "b"), Point(11, (5.0, 40.0), "a")]
    passes = []

    def find(method, points):
        passes.clear()
        method.progress = lambda done, total: passes.append((done, total))
        return method.find(images, points)

    store = EmbeddingStore(tmp_path, {"what": "test"})
    alone = find(build_method(networks), points)
    assert passes[-1] == (2 * 2 * DESCENT.steps,) * 2 and torch.equal(alone[0], alone[2])
    find(build_method(networks, store), points[:1])
    resumed = find(build_method(networks, store), points)
    assert passes[-1] == (2 * DESCENT.steps,) * 2  # the first point was there
    assert torch.equal(resumed[0], alone[0]) or relative(resumed[0], alone[0]) < 1e-2
    again = find(build_method(networks, store), points)
    assert not passes and torch.equal(again, resumed)
    more = find(build_method(networks, store, rounds=3), points)
    assert passes[-1] == (2 * DESCENT.steps,) * 2 and torch.equal(more[:, :2], resumed)
    assert find(build_method(networks, store, rounds=1), points).shape == (3, 1, 77, 32) and not passes
    (path, *_) = (store.folder).glob("a@*.safetensors")
    path.write_bytes(b"damaged")
    find(build_method(networks, store), points)
    assert passes  # it is made again
    assert store.get("b", (9.0, 9.0), images[12])["loss"].shape == (3, DESCENT.steps)
    assert store.get("b", (9.0, 9.0), images[12] + 1) is None  # another image of that name


def test_maps_that_are_not_finite_are_refused(networks, task, monkeypatch):
    images, *_ = task
    maps, method = PointReader.maps, build_method(networks)
    monkeypatch.setattr(PointReader, "maps", lambda self, *inputs: [value * math.nan for value in maps(self, *inputs)])
    with pytest.raises(NetworkError, match=r"point \(5.0, 40.0\) of a at the attention maps are not finite in fp32"):
        method.find(images, [Point(11, (5.0, 40.0), "a")])
    with pytest.raises(NetworkError, match="not finite"):
        method.read(images, [12], [Point(11, (5.0, 40.0), "a")], torch.zeros(1, 2, 77, 32))


def test_layers_are_averaged_after_a_softmax_over_the_pixels(networks):
    maps = torch.rand(2, 3, 8, 8)
    expected = maps.flatten(2).softmax(dim=-1).mean(dim=1).view(2, 8, 8)
    torch.testing.assert_close(build_method(networks).combine(maps), expected)
    plain = build_method(networks, pixel_softmax=False)
    torch.testing.assert_close(plain.combine(maps), maps.mean(dim=1))


def test_maps_are_the_mean_over_the_rounds_of_each_point(networks, task):
    images, _, start = task
    method, points = build_method(networks), [Point(11, (5.0, 40.0)), Point(12, (9.0, 9.0))]
    embeddings, targets = torch.stack([start[:2], start[1:]]), (12, 11)
    maps = method.read(images, targets, points, embeddings)
    for key, point, own, found in zip(targets, points, embeddings, maps, strict=True):
        seeds = [identifier_seed(key, f"{point.key} {point.xy} {number}") for number in (0, 1)]
        rows = Rows((key, key), torch.zeros(2, 2), torch.tensor(seeds))
        ((_, expected),) = method.reader.read(images, rows, own, READING)
        assert relative(found, expected.mean(dim=0)) < 1e-5


def test_maps_over_the_source_are_read_on_the_source(networks, task):
    images, *_ = task
    method = build_method(networks, rounds=1)

    def ask(target, on_source):
        batch = {"src_image": images[11][None], "trg_image": images[target][None]}
        similarity = method.similarity(batch, torch.tensor([[11, target]]))
        return similarity.layer_maps(torch.tensor([[[5.0, 40.0]]]), on_source)

    over = ask(12, True)
    assert relative(over, ask(11, False)) < 1e-5 and relative(over, ask(12, False)) > 1e-2


# ---- under test.py --------------------------------------------------------------------------------------------


# fmt: off
SMALL = (
    "DATASET.IMAGE_SIZE", "[64, 64]",
    "METHOD.NAME", "ldm_correspondence", "LDM.LAYERS", "['mid.0','up1.0']", "LDM.HEADS", "[1]", "LDM.STEPS", "2",
    "LDM.ROUNDS", "2", "LDM.CROPS", "5", "EVAL.LOCALISERS", "['centre']", "EVAL.PICTURE_LOCALISER", "centre",
    "LDM.LR", "0.05", "LDM.SIGMA", "5.0",
)
# fmt: on


def settings(world, output, *more):
    return load_config(None, world.opts(output, *SMALL, *more))


def score(world, output, *more):
    return run_test(settings(world, output, *more))


@pytest.mark.usefixtures("fresh_accelerator")
def test_it_is_tested_like_any_other_and_neither_batches_nor_chunks_matter(world, tmp_path):
    about, first = score(world, tmp_path / "a", "EVAL.BATCH_SIZE", "1", "TEST.PICTURES", "1")
    _, other = score(world, tmp_path / "b", "EVAL.BATCH_SIZE", "3", "LDM.ROWS_AT_ONCE", "3")
    assert (
        about["summary"]["pairs"] == 4
        and about["made_by"]["LDM.STEPS"] == 2
        and "LDM.ROWS_AT_ONCE" not in about["made_by"]
    )
    assert first == other
    assert list((tmp_path / "a" / "asset" / "LDM-embedding").rglob("*@*.safetensors"))


@pytest.mark.usefixtures("fresh_accelerator")
def test_the_page_of_results_has_the_maps_of_every_point(world, tmp_path):
    from app.viewer import build_pages, find_results

    score(world, tmp_path, "TEST.PICTURES", "1")
    (page,) = build_pages(find_results([str(tmp_path)]), ["centre"])
    losses = read_losses(next((tmp_path / "asset" / "LDM-embedding" / "spair").iterdir()))
    assert losses.shape[1] == 2 and len(losses) % 2 == 0 and losses.isfinite().all()
    with pytest.raises(StoreError, match="holds no embeddings"):
        read_losses(tmp_path)
    (method,) = page._content["methods"]
    (drawn,) = [(pair, maps) for pair, maps in zip(page._content["pairs"], method["maps"], strict=True) if maps]
    assert len(drawn[1]) == drawn[0]["n"] and all(page.images[number].endswith(".png") for number in drawn[1])


@pytest.mark.usefixtures("fresh_accelerator")
def test_a_test_that_was_stopped_goes_on_where_it_was(world, tmp_path, monkeypatch):
    """Pair by pair; and another judgement needs no networks."""
    alone = score(world, tmp_path / "a", "EVAL.BATCH_SIZE", "1")
    read, calls = LDMCorrespondence.read, []

    def stop(self, *more):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return read(self, *more)

    monkeypatch.setattr(LDMCorrespondence, "read", stop)
    with pytest.raises(KeyboardInterrupt):
        score(world, tmp_path / "b", "EVAL.BATCH_SIZE", "1")
    resumed = score(world, tmp_path / "b", "EVAL.BATCH_SIZE", "1")
    assert len(calls) == 3 + 2 and resumed[1] == alone[1]
    score(world, tmp_path / "b", "DATASET.THRESHOLD", "src_bbox", "EVAL.ALPHAS", "[0.01]")
    assert len(calls) == 5 and len(list((tmp_path / "b" / "prompt").rglob("*_pairs.csv"))) == 2
    score(world, tmp_path / "b", "EVAL.BATCH_SIZE", "2", "LDM.CROPS", "4")  # read again, with the same embeddings
    assert len(calls) == 7


@pytest.mark.usefixtures("fresh_accelerator")
def test_two_processes_find_what_one_finds(world, tmp_path):
    """Each takes its share of the pairs; they meet in the stores."""
    pair = launch(world, tmp_path / "two", *SMALL, processes=2, script="test.py", flags=[])
    _, alone = score(world, tmp_path / "one")
    _, err = pair.communicate(timeout=600)
    assert pair.returncode == 0, err[-3000:]
    (predictions,) = (tmp_path / "two" / "prompt").rglob("*_predictions.csv")
    assert predictions.read_text() == alone


@pytest.mark.parametrize(
    "key, value",
    {
        "LAYERS": "['mid.0']",
        "READ_LAYERS": "['up1.1']",
        "HEADS": "[]",
        "TOKEN": "2",
        "TOKENS": "20",
        "STEPS": "3",
        "LR": "0.1",
        "SIGMA": "9.0",
        "ROUNDS": "1",
        "CROP_PERCENT": "80.0",
        "CROP_MARGIN": "0.4",
        "FLIP_PROB": "1.0",
        "FIND_TIMESTEP": "700",
        "TIMESTEP": "700",
        "NOISE": "normal",
        "CROPS": "4",
        "PIXEL_SOFTMAX": "False",
    }.items(),
)
def test_every_key_changes_the_maps(world, key, value):
    """And only those of reading leave the embeddings as they were."""
    found = []
    for more in ((), (f"LDM.{key}", value)):
        cfg = settings(world, "/nowhere", "LDM.STEPS", "2", "LDM.ROUNDS", "2", *more)
        method = LDMCorrespondence.build(cfg, torch.device("cpu"), None, False)
        draw = torch.Generator().manual_seed(0)
        images = {key: torch.rand(3, 64, 64, generator=draw) * 2 - 1 for key in (1, 2)}
        points = [Point(1, (20.0, 50.0))]
        embeddings = method.find(images, points)
        found.append((embeddings, method.combine(method.read(images, [2], points, embeddings))))
    assert not torch.equal(found[0][1], found[1][1])
    first = [embeddings[:, :1] for embeddings, _ in found]
    same = first[0].shape == first[1].shape and ((first[0] - first[1]).abs() < 1e-3).float().mean() > 0.99
    assert same == (key in OF_READING)


@pytest.mark.parametrize(
    "key, value, said",
    [
        ("LDM.LAYERS", "['up7.0']", "no cross-attention layer up7.0"),
        ("LDM.HEADS", "[9]", "has heads 0 to"),
        ("DATASET.IMAGE_SIZE", "[64, 32]", "takes squares"),
        ("LDM.TOKEN", "77", "there are tokens 0..76"),
    ],
)
def test_settings_that_cannot_be_used(world, tmp_path, key, value, said):
    cfg = settings(world, tmp_path, key, value)
    check_config(cfg, training=False)
    with pytest.raises(ConfigError, match=said):
        LDMCorrespondence.build(cfg, torch.device("cpu"), None, False)


def test_numbers_of_the_release():
    cfg = load_config("config/spair/ldm_correspondence.yaml")
    check_config(cfg, training=False)
    section = cfg.LDM
    assert (section.LAYERS, section.READ_LAYERS) == (("up1.0", "up1.1", "up1.2", "up2.0"), ())
    assert (section.HEADS, section.TOKEN, section.TOKENS) == ((4, 5, 6, 7), 1, 77)
    assert (section.STEPS, section.LR, section.SIGMA) == (129, 0.0023755632081200314, 27.97853316316864)
    assert (section.ROUNDS, section.CROPS, section.CROP_PERCENT) == (5, 20, 93.16549294381423)
    assert (section.FLIP_PROB, section.NOISE, section.PIXEL_SOFTMAX) == (0.0, "uniform", True)
    assert (cfg.DATASET.IMAGE_SIZE, cfg.EVAL.ALPHAS, cfg.EVAL.BY) == ((512, 512), (0.05, 0.1), "image")
    scheduler = DDIMScheduler.from_config(STABLE_DIFFUSION["sd1-5"]["scheduler"])  # as of 1-4
    abar = scheduler.alphas_cumprod[[section.FIND_TIMESTEP, section.TIMESTEP]]
    assert abar.tolist() == pytest.approx([0.841763, 0.961886], abs=1e-6)


def test_noise_is_uniform_or_normal(world):
    latents, seeds, drawn = torch.zeros(1, 4, 32, 32), torch.tensor([1]), {}
    for kind in ("uniform", "normal"):
        method = LDMCorrespondence.build(
            settings(world, "/nowhere", "LDM.NOISE", kind), torch.device("cpu"), None, False
        )
        drawn[kind] = method.finder._draw_noise(latents, seeds, 2)
    assert drawn["uniform"].min() >= 0 and drawn["uniform"].max() < 1
    assert float(drawn["uniform"].mean()) == pytest.approx(0.5, abs=0.05)
    assert float(drawn["normal"].mean()) == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SEED", "1"),
        ("PRECISION", "bf16"),
        ("DATASET.FRAME", "pad"),
        ("DATASET.IMAGE_SIZE", "[128, 128]"),
        ("NETWORK.INIT", "random"),
        *((f"LDM.{key}", "7") for key in ("STEPS", "SIGMA", "FIND_TIMESTEP", "TOKEN")),
        *((f"LDM.{key}", "7") for key in ("CROPS", "TIMESTEP", "ROUNDS", "ROWS_AT_ONCE")),
        ("EVAL.BATCH_SIZE", "7"),
    ],
)
def test_embeddings_are_known_by_what_finds_them(world, key, value):
    usual, other = (
        LDMCorrespondence.what_finds(settings(world, "/nowhere", *more), torch.device("cpu"))
        for more in ((), (key, value))
    )
    without = key == "EVAL.BATCH_SIZE" or key.removeprefix("LDM.") in OF_READING
    assert (usual == other) == without


# ---- two photos -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(world):
    from PIL import Image

    from sd4match import Matcher

    matcher = Matcher.from_config(settings(world, "/nowhere"))
    return matcher.pair(Image.new("RGB", (80, 40), "red"), Image.effect_noise((50, 100), 90).convert("RGB"))


def test_points_of_two_photos(pair):
    passes = []
    found = pair.match([(20, 10), (70, 39)], progress=lambda done, total: passes.append((done, total)))
    rows = 2 * 2  # points, rounds: 2 steps, then 5 crops
    assert passes == [(rows * i, 2 * rows) for i in (1, 2)] + [(rows * i, 5 * rows) for i in range(1, 6)]
    assert found.points.shape == (2, 2)
    heat = pair.heatmap((20, 10))
    assert heat.shape == (100, 50) and heat.min() < 0.01 and heat.max() > 0.99
    x, y = found.points[0]
    assert heat[min(round(y), 99), min(round(x), 49)] > 0.9
    passes.clear()
    again = pair.match([(70, 39)], progress=lambda *_: passes.append(1))
    assert not passes and (again.points == found.points[1:]).all()
    assert pair.maps([(20, 10)], on_source=True).shape == (1, 2, 64, 64)
    json.dumps(found.to_records(), allow_nan=False)


@pytest.mark.parametrize("localiser", LOCALISERS)
def test_every_localiser_takes_points_of_photos(pair, localiser):
    """Also those that ask for other places than the points."""
    found = pair.match([(20, 10), (70, 39)], localiser)
    assert found.points.shape == (2, 2) and np.isfinite(found.points).all()
    assert len(pair.match([], localiser).points) == 0


def test_a_match_is_cancelled_by_its_callback(pair):
    class Cancelled(Exception):
        pass

    def stop(done, total):
        raise Cancelled

    with pytest.raises(Cancelled):
        pair.match([(1, 2)], progress=stop)
    with pytest.raises(ConfigError, match="point by point"):
        pair.dense()


def test_arithmetic_at_the_size_of_the_release():
    """Without weights: a step costs 60 % of the whole UNet forward, about as much backward, and no VAE."""
    from script.speed.points import count_point

    cfg = load_config(
        None, ["NETWORK.INIT", "random", "NETWORK.ARCHITECTURE", "sd1-5", "DATASET.IMAGE_SIZE", "[512,512]"]
    )
    work = {name: [part / 1e12 for part in parts] for name, parts in count_point(cfg).items()}
    step, reading, vae = work["plain"]
    assert (reading, vae) == pytest.approx((0.80, 1.12), abs=0.02)
    assert work["ours"][1] == pytest.approx(0.48, abs=0.01) and work["ours"][2] == 0
    per_point = {name: 645 * (step + vae) + 100 * (reading + vae) for name, (step, reading, vae) in work.items()}
    encoded = 2 * 1296 * 1.12 / 20  # every crop of both images once, for the 20 points of a pair
    assert per_point["plain"] > 2 * (per_point["ours"] + encoded)
    step, reading, _ = work["ours"]  # a source of SPair-71k's test split has 26 targets: points are found once
    assert per_point["plain"] > 15 * (645 * step / 26 + 100 * reading + encoded / 26)


def test_the_benchmark_times_both_sides(world, capsys):
    # fmt: off
    arguments = [
        "points", "--network", str(world.root / "sd"), "--pairs", "2", "--repeats", "1",
        "CONDITION.DINO_FOLDER", str(world.root / "dino"), "NETWORK.NAME", "tiny", "DATASET.IMAGE_SIZE", "[64,64]",
        "LDM.LAYERS", "['mid.0']", "LDM.HEADS", "[0,1]", "LDM.STEPS", "2", "LDM.ROUNDS", "1", "LDM.CROPS", "4",
        "DEVICE", "cpu",
    ]
    # fmt: on
    assert call("script/benchmark.py", *arguments) == 0 and "equal numbers: yes" in capsys.readouterr().out
