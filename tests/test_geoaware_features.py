"""GeoAware-SC's features: windows, noise, taps, FreeU's rule, captioner, positions; what the cache holds of them."""

import json

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from PIL import Image
from torch.nn import functional as F

from config import ConfigError, load_config
from engine.check import check_config
from model.backbone.captioner import PREFIX, TENSORS, Captioner, read_captioner
from model.backbone.diffusion import Diffusion
from model.backbone.freeu import FreeU
from model.backbone.layers import LayerExtractor, find_origins
from model.backbone.load import load_vision
from model.error import NetworkError, NetworkNotFoundError
from model.source import find_sources, load_sources
from tests.tiny import SD_CONFIG
from utils.noise import seeded

S3, S4, S5, S2 = "up2.attentions.1", "up1.attentions.1", "up0.resnets.1", "up3.attentions.1"
FREEU = (1.2, 1.4, 0.9, 0.2)
WIDTHS = (8, 16, 32, 32)  # of 320, 640, 1280, 1280


def build_unet(seed=0, **more):
    """Stable Diffusion's topology, narrow."""
    config = {
        "block_out_channels": WIDTHS,
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
        "sample_size": 8,
    }
    with seeded(seed):
        unet = UNet2DConditionModel(**config | more)
    return unet.requires_grad_(False).eval()


def build_scheduler():
    return DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


class SmallVAE(torch.nn.Module):
    """Stands in for a VAE of stride 8 without its cost: mean = pooled pixels, log-variance 0."""

    device, dtype = torch.device("cpu"), torch.float32

    def encode(self, images):
        pooled = F.avg_pool2d(images, 8)
        mean = torch.cat([pooled, pooled[:, :1]], dim=1)
        parameters = torch.cat([mean, torch.zeros_like(mean)], dim=1)
        return type("Encoded", (), {"latent_dist": type("Dist", (), {"parameters": parameters})})


def build_extractor(text, taps=(S3, S4, S5), unet=None, **options):
    diffusion = Diffusion(unet or build_unet(), build_scheduler(), taps)
    options = {"scaling_factor": 0.18215, "window": 64, "stride": 64, **options}
    return LayerExtractor(diffusion, SmallVAE(), text, **options)


def images(*size, n=1, seed=0):
    return torch.rand(n, 3, *size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# ---- windows and noise -------------------------------------------------------------------------------------------


def test_origins_of_windows():
    assert find_origins(960, 512, 512) == [0, 448]
    assert find_origins(512, 512, 512) == [0] and find_origins(1024, 512, 512) == [0, 512]
    assert find_origins(1088, 512, 512) == [0, 512, 576] and find_origins(960, 512, 256) == [0, 256, 448]
    with pytest.raises(ValueError, match="does not fit"):
        find_origins(448, 512, 512)


def test_schedule_and_noise_are_the_release_s(text):
    scheduler = build_scheduler()
    abar = scheduler.alphas_cumprod[50].item()
    assert abar**0.5 == pytest.approx(0.975488, abs=1e-6) and (1 - abar) ** 0.5 == pytest.approx(0.220052, abs=2e-6)
    seen = {}
    extractor = build_extractor(text, window=512, stride=512)
    extractor.diffusion.features = lambda z, t, condition, eps: seen.update(z=z, t=t, eps=eps) or {}
    extractor.extract(images(512, 512, n=2), ["", ""])
    first = [1.9269, 1.4873, 0.9007, -2.1055, 0.6784, -1.2345]
    assert seen["eps"].shape == seen["z"].shape == (2, 4, 64, 64) and seen["t"] == 50
    for row in seen["eps"]:
        torch.testing.assert_close(row.flatten()[:6], torch.tensor(first), atol=5e-5, rtol=0)
    pooled = F.avg_pool2d(images(512, 512, n=2), 8)
    torch.testing.assert_close(seen["z"][:, :3], 0.18215 * pooled)  # the posterior's mean


def test_windows_are_put_together_and_averaged_where_they_overlap(text):
    """960 px in windows of 512: 4 of 60 cells overlap at stride 16, 2 of 30 at 32, 1 of 15 at 64."""
    extractor = build_extractor(text, window=512, stride=512)
    corners = [(top, left) for top in (0, 448) for left in (0, 448)]
    for px, overlap in ((16, 4), (32, 2), (64, 1)):
        cells, whole = 512 // px, 960 // px
        parts = [torch.full((1, 2, cells, cells), float(value)) for value in (0, 1, 10, 11)]
        stitched = extractor.stitch(parts, corners, (960, 960))
        assert stitched.shape == (1, 2, whole, whole)
        first = whole - cells  # of the second window
        axis = torch.cat([torch.zeros(first), torch.full((overlap,), 0.5), torch.ones(whole - first - overlap)])
        torch.testing.assert_close(stitched[0, 0], 10 * axis[:, None] + axis[None])


def test_an_image_of_four_windows(text):
    extractor, image = build_extractor(text, stride=64), images(128, 128)
    found = extractor(image, [""])
    shapes = {tap: tuple(maps.shape[1:]) for tap, maps in found.items()}
    assert shapes == {S3: (16, 8, 8), S4: (32, 4, 4), S5: (32, 2, 2)}
    alone = extractor.extract(image[..., 64:, :64], [""])
    torch.testing.assert_close(found[S3][..., 4:, :4], alone[S3])


# ---- taps --------------------------------------------------------------------------------------------------------


def test_taps_are_what_the_next_residual_layer_joins_with_a_skip(text):
    """s5, s4, s3, s2 of the release are hidden states as they enter a layer of the decoder, without the skip."""
    taps, unet = (S5, S4, S3, S2), build_unet()
    joined = {}
    for i in range(4):
        unet.up_blocks[i].resnets[2].register_forward_pre_hook(
            lambda module, inputs, i=i: joined.update({taps[i]: inputs[0]})
        )
    sample, context = torch.randn(2, 4, 8, 8), torch.randn(2, 77, 32)
    unet(sample, 50, context)
    found = Diffusion(build_unet(), build_scheduler(), taps).features(sample, 50, context, None)
    for tap, width, side in zip(taps, (32, 32, 16, 8), (1, 2, 4, 8), strict=True):
        assert found[tap].shape == (2, width, side, side)
        torch.testing.assert_close(found[tap], joined[tap][:, :width])


def test_layers_with_their_skip_connections_are_what_is_joined_before_freeu_acts_on_it(text):
    """ "Decoder only" off: all that enters the release's output blocks 2, 5 and 8, of which it keeps a copy."""
    taps = ("up0.resnets.2.input", "up1.resnets.2.input", "up2.resnets.2.input")
    found = build_extractor(text, taps=taps, freeu=FREEU).extract(images(64, 64), [""])
    unet, joined = build_unet(), {}
    for i, tap in enumerate(taps):
        unet.up_blocks[i].resnets[2].register_forward_pre_hook(
            lambda module, inputs, tap=tap: joined.update({tap: inputs[0]})
        )
    build_extractor(text, taps=("up3",), unet=unet, freeu=FREEU).extract(images(64, 64), [""])
    for tap, width, skip in zip(taps, (32, 32, 16), (32, 16, 8), strict=True):
        assert found[tap].shape[1] == width + skip
        torch.testing.assert_close(found[tap], joined[tap])


@pytest.mark.parametrize("last", [S3, S4, S5, "up1.resnets.1", "up1.resnets.2.input", "up1", "mid", "down1", "up3"])
def test_the_unet_is_cut_after_the_last_tap_without_changing_it(last):
    sample, context = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 32)
    whole = Diffusion(build_unet(), build_scheduler(), (last, "up3") if last != "up3" else ("up3",))
    cut = Diffusion(build_unet(), build_scheduler(), (last,))
    expected, found = (d.features(sample, 50, context, None)[last] for d in (whole, cut))
    torch.testing.assert_close(found, expected)
    sizes = [sum(p.numel() for p in d.unet.parameters()) for d in (whole, cut)]
    assert sizes[1] < sizes[0] or last == "up3"
    if last == S3:  # of its block, neither the third layer nor the upsampler is left
        left = {
            name.split(".")[2] + name.split(".")[3] for name in cut.unet.state_dict() if name.startswith("up_blocks.2")
        }
        assert left == {"resnets0", "resnets1", "attentions0", "attentions1"}


def test_unknown_taps_list_what_there_is():
    for tap, message in (("up7", "up0, up1"), ("up0.attentions.0", "resnets.0, resnets.1, resnets.2"), ("x.y", "mid")):
        with pytest.raises(ValueError, match=message):
            Diffusion(build_unet(), build_scheduler(), (tap,))


@pytest.mark.parametrize(
    "taps",
    [
        (S3, S4, S5, S2),
        ("mid", "up0", "up1", "up3", "up3.resnets.0", "up0.resnets.0"),
        tuple(f"up{i}.resnets.{j}.input" for i in range(4) for j in range(3)),
    ],
)
def test_shapes_are_known_before_the_network_runs(taps):
    from model.backbone.facts import compute_facts

    configs = {**SD_CONFIG, "unet": {"block_out_channels": WIDTHS, "cross_attention_dim": 32}}
    facts = compute_facts(configs)
    found = Diffusion(build_unet(), build_scheduler(), taps).features(
        torch.randn(1, 4, 16, 8), 50, torch.randn(1, 77, 32), None
    )
    assert {tap: tuple(maps.shape[1:]) for tap, maps in found.items()} == {
        tap: facts.tap_shape((128, 64), tap) for tap in taps
    }
    with pytest.raises(ValueError, match="a tap is"):
        facts.tap_shape((64, 64), "up1.upsamplers.0")


def test_shapes_of_the_released_networks():
    from model.backbone.facts import network_facts

    for name in ("sd1-5", "sd2-1"):
        facts = network_facts("", init="random", architecture=name)
        shapes = [facts.tap_shape((960, 960), tap) for tap in (S3, S4, S5, S2)]
        assert shapes == [(640, 60, 60), (1280, 30, 30), (1280, 15, 15), (320, 120, 120)]
        joined = [facts.tap_shape((960, 960), f"up{i}.resnets.2.input")[0] for i in range(4)]
        assert joined == [2560, 1920, 960, 640]


# ---- FreeU -------------------------------------------------------------------------------------------------------


def filter_plainly(k, s):
    """F(k, s): the central 2 x 2 frequencies times s."""
    spectrum = torch.fft.fftshift(torch.fft.fft2(k), dim=(-2, -1))
    h, w = (side // 2 for side in k.shape[-2:])
    spectrum[..., h - 1 : h + 1, w - 1 : w + 1] *= s
    return torch.fft.ifft2(torch.fft.ifftshift(spectrum, dim=(-2, -1))).real


def test_freeu_acts_by_width_on_seven_and_three_residual_layers():
    unet, rule = build_unet(), FreeU(build_unet(), FREEU)
    before, after = {}, {}
    layers = {(i, j): resnet for i, block in enumerate(unet.up_blocks) for j, resnet in enumerate(block.resnets)}
    for place, resnet in layers.items():
        resnet.register_forward_pre_hook(lambda module, inputs, place=place: before.update({place: inputs[0].clone()}))
    rule.attach(unet)
    for place, resnet in layers.items():
        resnet.register_forward_pre_hook(lambda module, inputs, place=place: after.update({place: inputs[0]}))
    unet(torch.randn(1, 4, 16, 16), 50, torch.randn(1, 77, 32))
    widths = [32] * 7 + [16] * 3 + [8] * 2  # incoming: (1280 x 3), (1280 x 3), (1280, 640, 640), (640, 320, 320)
    factors = {32: (1.2, 0.9), 16: (1.4, 0.2), 8: (1.0, 1.0)}
    for place, width in zip(layers, widths, strict=True):
        h, k = before[place][:, :width], before[place][:, width:]
        b, s = factors[width]
        expected = torch.cat([h[:, : width // 2] * b, h[:, width // 2 :], filter_plainly(k, s)], dim=1)
        torch.testing.assert_close(after[place], expected, atol=1e-5, rtol=1e-5)


def test_freeu_is_not_the_library_s(text):
    ours = build_extractor(text, freeu=FREEU).extract(images(64, 64), [""])
    unet = build_unet()
    unet.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    theirs = build_extractor(text, unet=unet).extract(images(64, 64), [""])
    assert not torch.allclose(ours[S3][:, 8:], theirs[S3][:, 8:], atol=1e-3)


def test_the_last_scaling_leaks_into_the_returned_maps(text):
    """As raw as the UNet gives them, s5 and s4 lack 1.2 on half of their channels, s3 1.4, and s2 nothing."""
    extractor, raw = build_extractor(text, taps=(S3, S4, S5, S2), freeu=FREEU), {}
    features = extractor.diffusion.features
    extractor.diffusion.features = lambda *inputs: raw.update(features(*inputs)) or raw
    found = extractor.extract(images(64, 64), [""])
    for tap, factor in ((S5, 1.2), (S4, 1.2), (S3, 1.4), (S2, 1.0)):
        half = found[tap].shape[1] // 2
        torch.testing.assert_close(found[tap][:, :half], factor * raw[tap][:, :half])
        torch.testing.assert_close(found[tap][:, half:], raw[tap][:, half:])
    without = build_extractor(text, taps=(S3, S4, S5, S2)).extract(images(64, 64), [""])
    assert all(not torch.allclose(without[tap][:, -4:], found[tap][:, -4:]) for tap in (S3, S4, S2))


# ---- captioner ---------------------------------------------------------------------------------------------------


def captioner_tensors(time=32):
    g = torch.Generator().manual_seed(3)
    shapes = (1, 77, 32), (32, 12), (32,), (1, 77, 32), (time,), (time, 12), (time,), (1, 1, time)
    return {name: torch.randn(shape, generator=g) for name, shape in zip(TENSORS, shapes, strict=True)}


def write_odise(path, tensors):
    """A checkpoint as the authors', with what else it holds."""
    others = {"sem_seg_head.weight": torch.zeros(2), f"{PREFIX}other": torch.zeros(1)}
    torch.save({"model": {PREFIX + name: value for name, value in tensors.items()} | others}, path)
    return path


@pytest.fixture(scope="module")
def clip(world):
    return load_vision("CLIP", str(world.root / "clip")).model


def test_captioner_makes_condition_and_time_offset_from_the_window(text, clip):
    tensors = captioner_tensors()
    captioner = Captioner(tensors, clip)
    extractor = build_extractor(text, captioner=captioner)
    pictures, empty = images(64, 64, n=2), text.encode_text([""])
    context, offset = extractor.condition(pictures, ["", "a cat"])

    small = F.interpolate((pictures + 1) / 2, (56, 56), mode="bicubic", align_corners=False, antialias=False)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    p = clip(pixel_values=(small - mean) / std).image_embeds
    name = "clip_project"
    linear = p @ tensors[f"{name}.linear.weight"].T + tensors[f"{name}.linear.bias"]
    expected = empty + tensors["alpha_cond"].tanh() * (linear[:, None] + tensors[f"{name}.positional_embedding"])
    torch.testing.assert_close(context[0], expected[0])
    torch.testing.assert_close(context[1], text.encode_text(["a cat"])[0])  # words take its place
    name = "time_embed_project"
    linear = p @ tensors[f"{name}.linear.weight"].T + tensors[f"{name}.linear.bias"]
    expected = tensors["alpha_cond_time_embed"].tanh() * (linear + tensors[f"{name}.positional_embedding"][0])
    torch.testing.assert_close(offset, expected)  # but the offset stays

    assert extractor.condition(pictures, ["", ""])[0].shape == (2, 77, 32)
    plain = build_extractor(text).condition(pictures, ["", ""])
    assert plain[1] is None and torch.equal(plain[0][0], empty[0]) and not torch.allclose(plain[0], context)


def test_time_offset_is_added_after_the_timestep_s_mlp(text, clip):
    captioner = Captioner(captioner_tensors(), clip)
    extractor, seen = build_extractor(text, captioner=captioner), []
    embedding = extractor.diffusion.unet.time_embedding
    picture = images(64, 64)
    extractor.diffusion.unet.down_blocks[0].resnets[0].register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[1])
    )
    with_offset = extractor.extract(picture, [""])
    extractor.captioner = None
    without = extractor.extract(picture, [""])
    torch.testing.assert_close(seen[0], seen[1] + captioner.time_offset(captioner.embed(picture)))
    assert not embedding._forward_hooks and not torch.allclose(with_offset[S3], without[S3])


def test_captioner_from_odise_and_from_the_converted_file(tmp_path):
    from tests.command import call

    tensors = captioner_tensors()
    checkpoint = write_odise(tmp_path / "odise.pth", tensors)
    assert call("script/convert_captioner.py", checkpoint, tmp_path / "captioner.safetensors") == 0
    for path in (checkpoint, tmp_path / "captioner.safetensors"):
        found = read_captioner(path)
        assert list(found) == list(TENSORS) and all(torch.equal(found[name], tensors[name]) for name in TENSORS)


def test_captioners_that_are_none(tmp_path):
    with pytest.raises(NetworkNotFoundError, match="FEATURES.CAPTIONER .*no such file.*convert_captioner"):
        read_captioner(tmp_path / "nowhere.pth")
    tensors = captioner_tensors()
    less = {name: value for name, value in tensors.items() if name != "alpha_cond"}
    with pytest.raises(NetworkError, match="lacks alpha_cond;"):
        read_captioner(write_odise(tmp_path / "less.pth", less))
    (tmp_path / "text.pth").write_text("nothing")
    with pytest.raises(NetworkError, match="text.pth cannot be read"):
        read_captioner(tmp_path / "text.pth")


# ---- DINOv2 ------------------------------------------------------------------------------------------------------


def test_dino_tokens_before_the_norm_on_a_grid_of_positions_stretched_by_scale(world):
    """hidden_states[last] without the class token; positions interpolated by (cells + 0.1) / grid."""
    from model.backbone.facts import dino_facts
    from model.backbone.vision import compute_dino_map, normalise_pixels

    folder = str(world.root / "dino")
    model, facts = load_vision("DINO", folder).model, dino_facts(folder)
    pictures = images(84, 84, n=2)
    found = compute_dino_map(model, facts, pictures, norm=False)
    states = model(normalise_pixels(pictures, facts), output_hidden_states=True).hidden_states
    expected = states[-1][:, 1:].transpose(1, 2).unflatten(2, (6, 6))
    torch.testing.assert_close(found, expected)
    positions = model.embeddings.position_embeddings
    grid = positions[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    stretched = F.interpolate(grid, scale_factor=(6.1 / 4, 6.1 / 4), mode="bicubic", align_corners=False)
    tokens = torch.zeros(1, 37, positions.shape[-1])
    torch.testing.assert_close(
        model.embeddings.interpolate_pos_encoding(tokens, 84, 84)[:, 1:], stretched.flatten(2).transpose(1, 2)
    )


# ---- in the cache ------------------------------------------------------------------------------------------------


def settings(world, output, *more):
    layers = ("FEATURES.TAPS", "[up1.attentions.1, up0.resnets.1]", "FEATURES.SIZE", "[96, 96]")
    windows = ("FEATURES.WINDOW", "64", "FEATURES.STRIDE", "64", "DATASET.FRAME", "pad")
    dino = ("METHOD.DINO_FOLDER", str(world.root / "dino"), "METHOD.DINO_SIZE", "[56, 56]", "METHOD.DINO_NORM", "False")
    return load_config(None, world.opts(output, "METHOD.NAME", "geoaware", *layers, *windows, *dino, *more))


def find_layers(cfg):
    return find_sources(cfg, ("layers",), None)["layers"]


def test_stamp_says_what_makes_the_maps(world, tmp_path):
    base = find_layers(settings(world, tmp_path)).stamp
    captioner = write_odise(tmp_path / "odise.pth", captioner_tensors())
    clip = ("FEATURES.CLIP_FOLDER", str(world.root / "clip"))
    for more in (
        ("FEATURES.SIZE", "[128, 96]"),
        ("FEATURES.WINDOW", "96"),
        ("FEATURES.STRIDE", "32"),
        ("FEATURES.TIMESTEP", "100"),
        ("FEATURES.NOISE_SEED", "1"),
        ("FEATURES.FREEU", "()"),
        ("FEATURES.PROMPT", "a cat"),
        ("FEATURES.CAPTIONER", str(captioner), *clip),
        ("PRECISION", "bf16"),
        ("DATASET.FRAME", "stretch"),
    ):
        assert find_layers(settings(world, tmp_path, *more)).stamp != base, more
    assert find_layers(settings(world, tmp_path, "TEST.TIMESTEP", "3", *clip)).stamp == base


def test_maps_of_a_source_are_the_extractor_s_and_the_prompt_may_say_the_category(world, tmp_path):
    picture = Image.new("RGB", (70, 50), "red")
    source = find_layers(cfg := settings(world, tmp_path, "FEATURES.PROMPT", "a {category}"))
    assert source.shape == {"up1.attentions.1": (24, 6, 6), "up0.resnets.1": (32, 3, 3)}
    compute = source.load(torch.device("cpu"))
    cat, dog, nothing = compute([picture] * 3, ["cat", "dog", None])
    assert {tap: tuple(maps.shape) for tap, maps in cat.items()} == source.shape
    assert not torch.allclose(cat["up0.resnets.1"], dog["up0.resnets.1"])
    words = find_layers(settings(world, tmp_path, "FEATURES.PROMPT", cfg.PROMPT.WITHOUT_CATEGORY))
    (said,) = words.load(torch.device("cpu"))([picture], ["cat"])
    torch.testing.assert_close(nothing["up0.resnets.1"], said["up0.resnets.1"])


def test_what_is_read_of_mirror_images(world, tmp_path, fresh_accelerator):
    """Mirrored first, then padded: the array of an image that was mirrored by hand."""
    from engine.build import build_accelerator, build_method, build_pairs
    from engine.precompute import build_caches
    from model.method.geoaware import GeoAware

    cfg = settings(world, tmp_path)
    pairs, method = build_pairs(cfg, "test"), build_method(cfg, torch.device("cpu"), None)
    reads = ("layers", "dino", "layers_mirrored", "dino_mirrored")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GeoAware, "reads", reads)
        build_caches(cfg, (pairs,), method, build_accelerator(cfg))
    item = pairs[0]
    from PIL import ImageOps

    picture = Image.open(pairs.benchmark[0].src.path).convert("RGB")
    sources = load_sources(find_sources(cfg, reads, None), torch.device("cpu"))
    for key in ("layers", "dino"):
        (expected,) = sources[key]([ImageOps.mirror(picture)], ["cat"])
        (other,) = sources[f"{key}_mirrored"]([picture], ["cat"])
        found = item[f"src_{key}_mirrored"]
        for tap in cfg.FEATURES.TAPS if key == "layers" else [...]:  # [...] takes a whole array
            torch.testing.assert_close(found[tap].float(), expected[tap], atol=2e-3, rtol=2e-3)
            torch.testing.assert_close(other[tap], expected[tap])
    assert not torch.allclose(item["src_dino"], item["src_dino_mirrored"])
    folders = list((tmp_path / "asset" / "layers-tiny" / "spair").iterdir())
    assert len(folders) == 1  # both kinds side by side
    stamp = json.loads((folders[0] / "stamp.json").read_text())
    assert stamp["dtype"] == "float16" and stamp["freeu"] == list(FREEU)


# ---- settings that cannot be ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("FEATURES.TAPS", "[up9]"), "FEATURES.TAPS up9: layer must be one of"),
        (("FEATURES.TAPS", "[up1, up1]"), "each once"),
        (("FEATURES.WINDOW", "128"), "FEATURES.WINDOW 128 must fit into FEATURES.SIZE"),
        (("FEATURES.WINDOW", "40"), "FEATURES.WINDOW .*multiples of 32"),
        (("FEATURES.STRIDE", "96"), "FEATURES.STRIDE 96 must be at most"),
        (("FEATURES.FREEU", "[1.1, 1.2]"), "FEATURES.FREEU must be nothing or four factors"),
        (("FEATURES.CAPTIONER", "nowhere.pth"), "FEATURES.CAPTIONER nowhere.pth: no such file"),
        (("FEATURES.TIMESTEP", "1000"), "FEATURES.TIMESTEP"),
        (("NETWORK.FOLDER", "/nowhere"), "not a diffusers folder"),
    ],
)
def test_settings_are_refused_before_anything_slow(world, tmp_path, more, message):
    with pytest.raises(ConfigError, match=message):
        check_config(settings(world, tmp_path, *more), training=False)
