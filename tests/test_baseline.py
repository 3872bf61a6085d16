"""DIFT on SD1-style folders, DINOv2, SD+DINO and CleanDIFT: parity with plain versions, settings, refusals, files."""

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import AutoImageProcessor, CLIPTextConfig, CLIPTextModel, Dinov2Model

from config import ConfigError, load_config
from dataset import ImageRef
from dataset.pair_dataset import load_image
from engine.build import build_pairs
from engine.check import check_config
from engine.identity import what_makes_result
from engine.report import build_result_stem
from model.backbone.diffusion import Diffusion, draw_latents
from model.backbone.facts import dino_facts, find_unet, network_facts
from model.backbone.fingerprint import network_fingerprint
from model.backbone.load import load_stable_diffusion, load_vision
from model.backbone.text import PromptEncoder, build_byte_tokenizer
from model.backbone.vision import compute_dino_map
from model.error import NetworkError
from model.method import METHODS, find_method
from model.method.dinov2 import DINOv2
from model.prompt import new_prompt
from tests import tiny
from tests.command import run_test
from utils.noise import derive_seeds, draw_noise

CATEGORIES = ["bird", "cat"]


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    return str(tiny.build_tiny_dinov2(tmp_path_factory.mktemp("dino")))


@pytest.fixture(scope="module")
def sd1(tmp_path_factory):
    """As SD1-5's folder: epsilon prediction, a PNDM schedule, one head count, another scaling."""
    folder = tmp_path_factory.mktemp("sd1")
    changes = {"attention_head_dim": 2, "use_linear_projection": False}
    torch.manual_seed(0)
    AutoencoderKL(**{**tiny.SD_CONFIG["vae"], "scaling_factor": 0.31}).save_pretrained(folder / "vae")
    UNet2DConditionModel(**{**tiny.SD_CONFIG["unet"], **changes}).save_pretrained(folder / "unet")
    text = CLIPTextConfig(**{**tiny.SD_CONFIG["text_encoder"], "hidden_act": "quick_gelu"})
    CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    build_byte_tokenizer(514, pad_token="<|endoftext|>").save_pretrained(folder / "tokenizer")
    schedule = {"_class_name": "PNDMScheduler", "beta_start": 0.001, "beta_end": 0.02, "beta_schedule": "linear"}
    schedule |= {"num_train_timesteps": 1000, "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None}
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(schedule))
    return str(folder)


def build(folder, name="sd4match", prompt_name="text", unet="", layer=1, **settings):
    networks = load_stable_diffusion(folder, parts=("unet", "scheduler", "text_encoder", "tokenizer"), unet=unet)
    text = PromptEncoder(networks.text_encoder, networks.tokenizer)
    shape = tiny.DINO_SHAPE
    prompt = new_prompt(prompt_name, text, categories=CATEGORIES, condition_shape=shape)
    diffusion = Diffusion(networks.unet, networks.scheduler, (f"up{layer}",))
    settings = {"scaling_factor": networks.facts.scaling_factor, "image_size": tiny.IMAGE_SIZE, **settings}
    return find_method(name)(diffusion, text, prompt, **settings)


def make_pairs(n=2, dino_cells=(5, 7)):
    generator = torch.Generator().manual_seed(0)
    batch = {"category": [CATEGORIES[i % 2] for i in range(n)]}
    for side in ("src", "trg"):
        batch[f"{side}_posterior"] = torch.randn(n, 8, 8, 8, generator=generator)
        batch[f"{side}_dino"] = torch.randn(n, 6, *dino_cells, generator=generator).half()
        batch[f"{side}_condition"] = torch.randn(n, *tiny.DINO_SHAPE, generator=generator)
    return batch, torch.arange(2 * n).reshape(n, 2)


def images_of(batch, side):
    return {**{key[4:]: value for key, value in batch.items() if key.startswith(side)}, "category": batch["category"]}


# ---- DIFT on any folder, layer and timestep --------------------------------------------------------------------


@pytest.mark.parametrize(("prompt_name", "layer", "timestep"), [("text", 0, 0), ("empty", 1, 261), ("text", 2, 999)])
@torch.no_grad()
def test_dift_on_an_sd1_folder_equals_the_formula(sd1, prompt_name, layer, timestep):
    matcher = build(sd1, prompt_name=prompt_name, layer=layer, timestep=timestep, ensemble=2)
    batch, seeds = make_pairs()
    feature = matcher.features(images_of(batch, "src"), seeds[:, 0])

    facts = network_facts(sd1)
    assert (facts.prediction_type, facts.scaling_factor) == ("epsilon", 0.31)
    assert feature.shape[1:] == facts.feature_shape(tiny.IMAGE_SIZE, layer)
    networks = load_stable_diffusion(sd1)
    hooked = []
    networks.unet.up_blocks[layer].register_forward_hook(lambda *args: hooked.append(args[2]))
    abar = torch.cumprod(1 - torch.linspace(0.001, 0.02, 1000), 0)[timestep]
    mean, log_var = batch["src_posterior"].chunk(2, dim=1)
    std = (0.5 * log_var.clamp(-30, 20)).exp()
    latents = 0.31 * (mean + std * draw_noise(derive_seeds(seeds[:, 0], 0), (4, 8, 8)))
    texts = ["a photo of a bird", "a photo of a cat"] if prompt_name == "text" else ["", ""]
    ids = networks.tokenizer(texts, padding="max_length", max_length=77, return_tensors="pt").input_ids
    embeds = networks.text_encoder(ids).last_hidden_state
    for draw in (1, 2):
        eps = draw_noise(derive_seeds(seeds[:, 0], draw), (4, 8, 8))
        networks.unet(abar.sqrt() * latents + (1 - abar).sqrt() * eps, timestep, embeds)
    torch.testing.assert_close(feature, torch.stack(hooked).mean(dim=0), rtol=1e-4, atol=1e-5)


# ---- DINOv2 ------------------------------------------------------------------------------------------------------


def write_photo(path, size=(70, 84)):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return ImageRef("x", str(path), "cat", size)


def test_dino_maps_equal_a_direct_transformers_call(dino, tmp_path):
    """The photo has the input's size, so that no resampling stands between the two."""
    ref = write_photo(tmp_path / "photo.png")
    images = load_image(ref, (70, 84))[None]
    network, facts = load_vision("DINO", dino, positions="size"), dino_facts(dino)
    ours = compute_dino_map(network.model, facts, images)

    processor = AutoImageProcessor.from_pretrained(dino, backend="pil")
    pixels = processor(Image.open(ref.path), do_resize=False, do_center_crop=False, return_tensors="pt").pixel_values
    model = Dinov2Model.from_pretrained(dino)
    with torch.no_grad():
        output = model(pixels, output_hidden_states=True)
    tokens = output.last_hidden_state[0, 1:]
    assert ours.shape == (1, *facts.feature_shape((70, 84))) == (1, 24, 5, 6)
    for row, column in ((0, 0), (2, 5), (4, 1)):
        torch.testing.assert_close(ours[0, :, row, column], tokens[6 * row + column], rtol=1e-4, atol=1e-5)

    first = compute_dino_map(network.model, facts, images, layer=0, norm=False)
    torch.testing.assert_close(first[0, :, 1, 2], output.hidden_states[1][0, 1 + 8], rtol=1e-4, atol=1e-5)
    last = compute_dino_map(network.model, facts, images, layer=1, norm=True)
    assert torch.equal(last, ours) and facts.n_layers == 2
    with torch.no_grad():
        raw = model(images).last_hidden_state[0, 1:]
    release = compute_dino_map(network.model, facts, images, normalise=False)
    torch.testing.assert_close(release[0, :, 0, 3], raw[3], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(release, ours, atol=1e-3)


def test_dino_settings_are_checked(dino, tmp_path):
    network, facts = load_vision("DINO", dino), dino_facts(dino)
    with pytest.raises(ValueError, match=r"layer must be in -1..1, got 2"):
        compute_dino_map(network.model, facts, torch.zeros(1, 3, 28, 28), layer=2)
    with pytest.raises(ValueError, match=r"\(28, 30\) must be a multiple of 14 px"):
        compute_dino_map(network.model, facts, torch.zeros(1, 3, 28, 30))
    other = tiny.build_tiny_clip_vision(tmp_path / "clip")
    with pytest.raises(NetworkError, match="holds a model of type 'clip_vision_model', not 'dinov2'"):
        dino_facts(str(other))
    sizes = {name: dino_facts(f"facebook/dinov2-{name}").width for name in ("small", "base", "large", "giant")}
    assert sizes == {"small": 384, "base": 768, "large": 1024, "giant": 1536}


def test_the_dinov2_matcher_gives_what_the_cache_holds():
    matcher = DINOv2(tiny.IMAGE_SIZE)
    batch, seeds = make_pairs()
    src, trg = matcher.at(50, 8).pair_features(batch, seeds)
    assert src.dtype == torch.float32
    assert torch.equal(src, batch["src_dino"].float()) and torch.equal(trg, batch["trg_dino"].float())
    assert torch.equal(matcher.features(images_of(batch, "trg"), seeds[:, 1]), trg)
    assert matcher.per_image and matcher.trainable is None and not list(matcher.parameters())


# ---- SD+DINO -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cells", [(4, 4), (5, 7), (2, 2)])
@torch.no_grad()
def test_sd_dino_equals_hand_concatenation(world, cells):
    settings = {"layer": 0, "timestep": 50, "ensemble": 2}
    fused = build(str(world.root / "sd"), "sd_dino", **settings)
    fused.weights = (0.3, 0.6)
    plain = build(str(world.root / "sd"), **settings)
    batch, seeds = make_pairs(dino_cells=cells)
    for ours, sd, side in zip(fused.pair_features(batch, seeds), plain.pair_features(batch, seeds), "st", strict=True):
        dino = batch["src_dino" if side == "s" else "trg_dino"].float()
        dino = F.interpolate(dino, size=sd.shape[-2:], mode="bilinear", align_corners=False, antialias=True)
        dino = batch["src_dino" if side == "s" else "trg_dino"].float() if cells == sd.shape[-2:] else dino
        sd, dino = sd / sd.norm(dim=1, keepdim=True), dino / dino.norm(dim=1, keepdim=True)
        torch.testing.assert_close(ours, torch.cat([0.3 * sd, 0.6 * dino], dim=1))
    one = fused.features(images_of(batch, "src"), seeds[:, 0])
    torch.testing.assert_close(one, fused.pair_features(batch, seeds)[0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_fused_cosine_is_the_weighted_mean_of_the_two(world):
    fused = build(str(world.root / "sd"), "sd_dino", layer=0)
    fused.weights = (1.0, 2.0)
    batch, seeds = make_pairs(dino_cells=(4, 4))
    src, trg = (feature[0, :, 0, 0] for feature in fused.pair_features(batch, seeds))
    cosines = [F.cosine_similarity(src[part], trg[part], dim=0) for part in (slice(-6), slice(-6, None))]
    torch.testing.assert_close(F.cosine_similarity(src, trg, dim=0), (cosines[0] + 4 * cosines[1]) / 5)


def test_sd_dino_follows_its_prompt_and_gives_it_gradients(world):
    fused = build(str(world.root / "sd"), "sd_dino", "CPM_spair_tiny_Pair-DINO-Feat-G2-C3")
    assert not fused.per_image and fused.reads == ("posterior", "dino", "condition")
    batch, seeds = make_pairs()
    src, trg = fused.pair_features(batch, seeds)
    (src - trg).square().sum().backward()
    assert all(parameter.grad is not None for parameter in fused.prompt.parameters())
    other = fused.at(7, 3)
    assert (other.timestep, other.ensemble) == (7, 3) and fused.timestep == 261
    assert other.prompt is fused.prompt


# ---- CleanDIFT, and another UNet ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clean_unet(tmp_path_factory):
    """A UNet of the tiny model's architecture with other weights: as a folder, and as a bare weight file."""
    folder = tmp_path_factory.mktemp("cleandift")
    torch.manual_seed(5)
    unet = UNet2DConditionModel(**tiny.SD_CONFIG["unet"])
    unet.save_pretrained(folder / "unet")
    save_file(unet.state_dict(), folder / "weights.safetensors")
    return folder


@pytest.mark.parametrize("kind", ["unet", "weights.safetensors"])
@torch.no_grad()
def test_cleandift_runs_its_unet_on_the_clean_latent(world, clean_unet, kind):
    folder = str(world.root / "sd")
    matcher = build(folder, "cleandift", "empty", unet=str(clean_unet / kind), timestep=100, posterior="mode")
    batch, seeds = make_pairs()
    feature = matcher.features(images_of(batch, "src"), seeds[:, 0])
    unet, hooked = UNet2DConditionModel.from_pretrained(clean_unet / "unet"), []
    unet.up_blocks[1].register_forward_hook(lambda *args: hooked.append(args[2]))
    latents = draw_latents(batch["src_posterior"], 0.18215, None)
    unet(latents, 100, matcher.text.encode_text([""]).expand(2, -1, -1))
    torch.testing.assert_close(feature, hooked[0], rtol=1e-4, atol=1e-5)
    assert torch.equal(feature, matcher.features(images_of(batch, "src"), seeds[:, 0] + 99))


def test_another_unet_has_another_fingerprint_and_must_fit(world, clean_unet, tmp_path):
    folder, parts = str(world.root / "sd"), ("unet", "text_encoder")
    file, sub = str(clean_unet / "weights.safetensors"), str(clean_unet / "unet")
    prints = {network_fingerprint(folder, parts, unet=unet) for unet in ("", file, sub)}
    assert len(prints) == 3
    assert network_fingerprint(folder, ("vae",), unet=file) == network_fingerprint(folder, ("vae",))
    assert find_unet("someone/network/file.safetensors") is None
    with pytest.raises(FileNotFoundError, match="no UNet at 'someone/network/file.safetensors'"):
        network_fingerprint(folder, parts, unet="someone/network/file.safetensors")
    save_file({"conv_in.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(NetworkError, match="NETWORK.UNET.*does not fit the UNet of NETWORK.FOLDER"):
        load_stable_diffusion(folder, parts=("unet",), unet=str(tmp_path / "other.safetensors"))
    UNet2DConditionModel(**{**tiny.SD_CONFIG["unet"], "cross_attention_dim": 16}).save_pretrained(tmp_path / "unet")
    with pytest.raises(NetworkError, match="cross_attention_dim 16, not 32"):
        load_stable_diffusion(folder, parts=("unet",), unet=str(tmp_path / "unet"))


@torch.no_grad()
def test_a_unet_is_found_in_the_hubs_cache(world, clean_unet, tmp_path, monkeypatch):
    weights, repository = clean_unet / "weights.safetensors", tmp_path / "models--owner--clean"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots" / "abc").mkdir(parents=True)
    (repository / "snapshots" / "abc" / "weights.safetensors").symlink_to(weights)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder, unet = str(world.root / "sd"), "owner/clean/weights.safetensors"
    assert network_fingerprint(folder, ("unet",), unet=unet) == network_fingerprint(
        folder, ("unet",), unet=str(weights)
    )
    loaded = load_stable_diffusion(folder, parts=("unet",), unet=unet).unet
    plain = UNet2DConditionModel.from_pretrained(clean_unet / "unet").state_dict()
    assert all(torch.equal(value, plain[key]) for key, value in loaded.state_dict().items())


# ---- from the config to the result files -------------------------------------------------------------------------


def settings_of(world, output, *more):
    dino = ("METHOD.DINO_FOLDER", str(world.root / "dino"), "METHOD.DINO_SIZE", "[56, 56]")
    return load_config(None, world.opts(output, *dino, "TEST.ENSEMBLE", "1", *more))


@pytest.mark.usefixtures("fresh_accelerator")
@pytest.mark.parametrize("name", [name for name, entry in METHODS.items() if entry.task == "correspondence"])
def test_every_matcher_is_tested_by_its_name(world, tmp_path, name):
    small = ("LDM.LAYERS", "['mid.0']", "LDM.HEADS", "[]", "LDM.STEPS", "1", "LDM.ROUNDS", "1", "LDM.CROPS", "1")
    cfg = settings_of(world, tmp_path, "METHOD.NAME", name, *(small if METHODS[name].section == "LDM" else ()))
    assert run_test(cfg)[0]["summary"]["pairs"] == 4
    caches = {path.parent.name for path in (tmp_path / "asset").glob("*/spair")}
    folders = {"posterior": "VAE-tiny", "dino": "DINOv2-map"}
    assert caches & set(folders.values()) == {folders[kind] for kind in METHODS[name].reads if kind in folders}


@pytest.mark.usefixtures("fresh_accelerator")
def test_dinov2_alone_needs_no_stable_diffusion(world, tmp_path):
    more = ["METHOD.NAME", "dinov2", "NETWORK.FOLDER", "/nowhere", "DATASET.IMAGE_SIZE", "[50, 70]"]
    cfg = settings_of(world, tmp_path, *more)
    assert run_test(cfg)[0]["summary"]["pairs"] == 4
    assert build_result_stem(cfg).parent == tmp_path / "prompt" / "dinov2"


@pytest.mark.usefixtures("fresh_accelerator")
def test_a_prompt_is_learned_on_fused_features(world, tmp_path):
    from tests.test_train import run

    dino = ("METHOD.DINO_FOLDER", str(world.root / "dino"), "METHOD.DINO_SIZE", "[56, 56]")
    run(world, tmp_path, "METHOD.NAME", "sd_dino", *dino, "TRAIN.MAX_STEPS", "1")
    (folder,) = (tmp_path / "prompt").iterdir()
    assert json.loads((folder / "prompt.json").read_text())["made_by"]["METHOD.NAME"] == "sd_dino"
    cfg = settings_of(world, tmp_path, "METHOD.NAME", "sd_dino", "PROMPT.TYPE", folder.name)
    assert run_test(cfg)[0]["summary"]["pairs"] == 4


def test_result_names_begin_with_the_documented_ones(world, tmp_path):
    stem = build_result_stem(settings_of(world, tmp_path)).name
    settings = "Layer1-Timestep50-Ensemble1-Seed0-32x32-resized-image-pair"
    assert stem == f"spair_result_text_all_test_{settings}"
    names = [settings_of(world, tmp_path, "PROMPT.TYPE", "p" * 190, "TEST.TIMESTEP", t) for t in ("50", "261")]
    names = [build_result_stem(cfg).name for cfg in names]
    assert len(set(names)) == 2 and all(len(f".{name}_predictions.csv.12345678.tmp") <= 255 for name in names)


def test_whatever_changes_a_number_makes_another_result(world, tmp_path):
    other_dino = str(tiny.build_tiny_dinov2(tmp_path / "other", seed=5))
    shared = {
        "PROMPT.TYPE": "empty", "DATASET.CATEGORY": "cat", "TEST.SPLIT": "val", "EVAL.PROTOCOL": "original",
        "EVAL.BY": "point", "EVAL.AVERAGE": "category", "EVAL.BETA": "0.1", "EVAL.SIGMA": "3.5", "PRECISION": "bf16",
        "DATASET.IMAGE_SIZE": "[64, 32]", "PROMPT.TEMPLATE": "the {category}",
    }  # fmt: skip
    diffusion = {
        "METHOD.LAYER": "0", "METHOD.POSTERIOR": "mode", "TEST.TIMESTEP": "7", "TEST.ENSEMBLE": "2", "SEED": "3",
    }  # fmt: skip
    dino = {
        "METHOD.DINO_FOLDER": other_dino, "METHOD.DINO_SIZE": "[70, 56]", "METHOD.DINO_LAYER": "1",
        "METHOD.DINO_NORM": "False", "METHOD.DINO_INPUT": "release",
    }  # fmt: skip
    weights = {"METHOD.SD_WEIGHT": "0.7", "METHOD.DINO_WEIGHT": "0.7"}
    own = {
        "sd4match": {**shared, **diffusion},
        "cleandift": {**shared, **diffusion},
        "sd_dino": {**shared, **diffusion, **dino, **weights},
        "dinov2": {key: shared[key] for key in shared if not key.startswith("PROMPT")} | dino,
    }

    def make(name, *change):
        cfg = settings_of(world, tmp_path, "METHOD.NAME", name, *change)
        return json.dumps(what_makes_result(cfg, build_pairs(cfg, cfg.TEST.SPLIT)), sort_keys=True)

    results = set()
    for name, changes in own.items():
        made = [make(name), *(make(name, *item) for item in changes.items())]
        assert len(set(made)) == len(made)
        results.update(made)
        if "dino" not in METHODS[name].reads:
            assert {make(name, *item) for item in {**dino, **weights}.items()} == {made[0]}
    assert len(results) == sum(len(changes) + 1 for changes in own.values())


@pytest.mark.parametrize(
    ("training", "more", "message"),
    [
        (True, ["METHOD.NAME", "dinov2"], r"METHOD.NAME dinov2 has nothing to learn"),
        (False, ["METHOD.NAME", "dinov2", "PROMPT.TYPE", "Single_spair_tiny_HiddenState"], r"takes no learned prompt"),
        (False, ["METHOD.NAME", "cleandift", "TEST.ENSEMBLE", "8"], r"TEST.ENSEMBLE must be 1, got 8: cleandift adds"),
        (True, ["METHOD.NAME", "cleandift", "VAL.ENSEMBLE", "2"], r"VAL.ENSEMBLE must be 1, got 2"),
        (False, ["METHOD.NAME", "dinov2", "METHOD.DINO_SIZE", "[57, 70]"], r"multiples of 14 px; .* \(56, 70\)"),
        (False, ["METHOD.NAME", "dinov2", "METHOD.DINO_SIZE", "[56]"], r"DINO_SIZE must be two numbers"),
        (False, ["METHOD.NAME", "dinov2", "METHOD.DINO_LAYER", "2"], r"DINO_LAYER 2 does not exist: blocks are 0..1"),
        (False, ["METHOD.NAME", "dinov2", "METHOD.DINO_LAYER", "-2"], r"DINO_LAYER must be in -1..999"),
        (False, ["METHOD.NAME", "dinov2", "METHOD.DINO_FOLDER", "/none"], r"DINO_FOLDER /none: not a transformers"),
        (False, ["METHOD.NAME", "dinov2", "METHOD.DINO_INPUT", "raw"], r"DINO_INPUT must be one of normalised, rel"),
        (False, ["METHOD.NAME", "sd_dino", "METHOD.SD_WEIGHT", "-1.0"], r"SD_WEIGHT must be in 0..1000"),
        (False, ["METHOD.NAME", "sd_dino", "METHOD.SD_WEIGHT", ".nan"], r"SD_WEIGHT must be in 0..1000"),
        (False, ["METHOD.NAME", "sd_dino", "METHOD.SD_WEIGHT", "0", "METHOD.DINO_WEIGHT", "0"], r"not both 0"),
        (False, ["METHOD.NAME", "sd_dino", "METHOD.LAYER", "9"], r"METHOD.LAYER 9 does not exist"),
        (False, ["NETWORK.UNET", "/nowhere"], r"NETWORK.UNET /nowhere: no UNet folder"),
        (False, ["NETWORK.UNET", "README.md"], r"only .safetensors files are read"),
        (False, ["NETWORK.UNET", "docs"], r"the folder lacks config.json"),
        (False, ["NETWORK.UNET", "asset/mini/stable-diffusion/unet"], r"does not fit NETWORK.FOLDER"),
        (False, ["NETWORK.UNET", "a/b", "NETWORK.INIT", "random"], r"NETWORK.UNET needs NETWORK.INIT pretrained"),
    ],
)  # fmt: skip
def test_meaningless_settings_are_refused_by_name(world, tmp_path, training, more, message):
    with pytest.raises(ConfigError, match=message):
        check_config(settings_of(world, tmp_path, *more), training=training)


def test_a_replaced_unet_may_not_go_by_a_released_name_in_training():
    more = ["NETWORK.UNET", "CompVis/cleandift/cleandift_sd21_unet.safetensors", "METHOD.NAME", "cleandift"]
    with pytest.raises(ConfigError, match="choose another, such as sd2-1-cleandift"):
        check_config(load_config("config/spair/base.yaml", more), training=True)
    check_config(load_config("config/spair/base.yaml", [*more, "NETWORK.NAME", "sd2-1-cleandift"]), training=True)
