"""Features to plug in: the numbers of a plain hook on the stock networks, in every layer, size and precision."""

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel, DINOv3ViTConfig, DINOv3ViTModel

from config import ConfigError, load_config
from model.backbone.facts import dino_facts
from model.backbone.load import load_vision
from model.backbone.text import build_byte_tokenizer
from model.backbone.vision import compute_dino_map
from model.prompt import new_prompt
from model.prompt.build import load_text
from model.prompt.store import save_prompt
from sd4match import Featurizer, Matcher
from utils.noise import derive_seeds, draw_noise

SIZE = (64, 96)


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (3, 9, 12, 3), dtype=np.uint8)
    return [Image.fromarray(array).resize((120, 80), Image.Resampling.BICUBIC) for array in small]


@pytest.fixture(scope="module")
def make(world):
    def build(layers=None, **options):
        return Featurizer(str(world.root / "sd"), layers, **{"image_size": SIZE, "ensemble": 2, **options})

    return build


def as_tensor(picture):
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def plain_hooks(world, featurizer, pictures, words, timestep, ensemble, names):
    """What hooks on the whole stock UNet see, averaged over noise draws at the featurizer's seeds."""
    pixels = torch.stack([as_tensor(picture) for picture in pictures])
    pixels = torch.nn.functional.interpolate(pixels, SIZE, mode="bilinear", antialias=True) * 2 - 1
    seeds, folder = torch.tensor([featurizer._read(picture)[2] for picture in pictures]), world.root / "sd"
    vae = AutoencoderKL.from_pretrained(folder / "vae")
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    text = CLIPTextModel.from_pretrained(folder / "text_encoder")
    scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")
    ids = build_byte_tokenizer(514)([words], padding="max_length", max_length=77, return_tensors="pt").input_ids
    seen, total = {}, dict.fromkeys(names, 0)

    def keep(name):
        return lambda module, inputs, output: seen.update({name: output[0] if isinstance(output, tuple) else output})

    for name, path in names.items():
        unet.get_submodule(path).register_forward_hook(keep(name))
    with torch.no_grad():
        posterior = vae.encode(pixels).latent_dist
        latents = posterior.mean + posterior.std * draw_noise(derive_seeds(seeds, 0), posterior.mean.shape[1:])
        latents = vae.config.scaling_factor * latents
        condition = text(ids).last_hidden_state.expand(len(pixels), -1, -1)
        for draw in range(1, ensemble + 1):
            noise = draw_noise(derive_seeds(seeds, draw), latents.shape[1:])
            unet(scheduler.add_noise(latents, noise, torch.tensor([timestep])), timestep, condition)
            total = {name: total[name] + value / ensemble for name, value in seen.items()}
    return total


BLOCKS = {"down0": "down_blocks.0", "down2": "down_blocks.2", "mid": "mid_block", "up0": "up_blocks.0"}
BLOCKS |= {"up1": "up_blocks.1", "up2": "up_blocks.2"}


def test_dift_as_by_a_plain_hook(world, make, pictures):
    """The settings of the featurizer that many repositories carry: t = 261, up_ft_index 1, a prompt, an ensemble."""
    featurizer = make(("up1",), timestep=261, prompt="a photo of a cat", ensemble=3)
    found = featurizer(pictures)
    assert list(found) == ["up1"] and found["up1"].shape == (3, 24, 8, 12) and not found["up1"].requires_grad
    expected = plain_hooks(world, featurizer, pictures, "a photo of a cat", 261, 3, {"up1": BLOCKS["up1"]})
    assert torch.allclose(found["up1"], expected["up1"], atol=1e-5)


def test_all_blocks_at_once(world, make, pictures):
    featurizer = make(tuple(reversed(BLOCKS)), timestep=50)
    found = featurizer(pictures[:1])
    expected = plain_hooks(world, featurizer, pictures[:1], "", 50, 2, BLOCKS)
    assert list(found) == list(reversed(BLOCKS))
    for name, value in expected.items():
        assert found[name].shape == value.shape and torch.allclose(found[name], value, atol=1e-5), name


PARTS = {
    "up1.attentions.0": "up_blocks.1.attentions.0",
    "up1.resnets.0": "up_blocks.1.resnets.0",
    "up1.attentions.1.query": "up_blocks.1.attentions.1.transformer_blocks.0.attn1.to_q",
    "up1.attentions.0.key": "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k",
    "down1.attentions.0.value": "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_v",
    "mid.attentions.0.transformer_blocks.0.attn2.to_q": "mid_block.attentions.0.transformer_blocks.0.attn2.to_q",
}


@pytest.mark.parametrize("names", [[name] for name in PARTS] + [list(PARTS), [*PARTS, "up1"]])
def test_parts_of_blocks_queries_and_keys(world, make, pictures, names):
    """Alone and together: the UNet is cut after the last of them."""
    featurizer = make(names, timestep=50, ensemble=1)
    found = featurizer(pictures[:1])
    paths = {name: (PARTS | BLOCKS)[name] for name in names}
    expected = plain_hooks(world, featurizer, pictures[:1], "", 50, 1, paths)
    for name, value in expected.items():
        if value.dim() == 3:  # tokens, row by row
            h, w = found[name].shape[-2:]
            assert h * w == value.shape[1] and h / w == SIZE[0] / SIZE[1]
            value = value.transpose(1, 2).reshape(1, -1, h, w)
        assert torch.allclose(found[name], value, atol=1e-5), name


def test_the_features_of_a_matcher(world, make, pictures):
    matcher = Matcher.from_pretrained(str(world.root / "sd"), "empty", "cpu", image_size=SIZE, ensemble=2)
    found = make(timestep=matcher.config.TEST.TIMESTEP)(pictures[0])
    assert torch.allclose(found["up1"][0], matcher.encode(pictures[0]).feature, atol=1e-5)


@pytest.mark.parametrize("kind", ["Single", "Class"])
def test_a_learned_prompt(world, make, pictures, tmp_path, kind):
    """By its folder as the prompt, or as the name that brings its network."""
    name = f"{kind}_spair_sd_TokenEmbeds9"
    learned = new_prompt(name, load_text(load_config(None, world.opts(tmp_path))), categories=["bird", "cat"])
    save_prompt(tmp_path / name, learned)
    category = "cat" if kind == "Class" else None
    matcher = Matcher.from_pretrained(
        str(world.root / "sd"), str(tmp_path / name), "cpu", image_size=SIZE, ensemble=2, timestep=50
    )
    found = make(timestep=50, prompt=str(tmp_path / name))(pictures[0], category=category)
    assert torch.allclose(found["up1"][0], matcher.encode(pictures[0], category).feature, atol=1e-5)
    assert not torch.allclose(found["up1"], make(timestep=50)(pictures[0])["up1"], atol=1e-4)


def test_a_prompt_made_from_images_is_refused(world, make, tmp_path):
    name = "CPM_spair_sd_Img-DINO-Head-G2-C4"
    text = load_text(load_config(None, world.opts(tmp_path)))
    save_prompt(tmp_path / name, new_prompt(name, text, condition_shape=(17, 24)))
    with pytest.raises(ConfigError, match=f"{name} is made from images: use Matcher"):
        make(prompt=str(tmp_path / name), settings={"CONDITION.DINO_FOLDER": str(world.root / "dino")})


def test_a_batch_is_its_images_and_a_tensor_its_picture(make, pictures):
    featurizer = make(("mid", "up1"))
    words = ["a cat", "a dog", "a cat"]
    whole = featurizer(pictures, words)
    assert torch.equal(whole["up1"], featurizer(pictures, words, batch_size=2)["up1"]) or torch.allclose(
        whole["up1"], featurizer(pictures, words, batch_size=2)["up1"], atol=1e-5
    )
    for picture, word, expected in zip(pictures, words, whole["up1"], strict=True):
        assert torch.allclose(featurizer(picture, word)["up1"][0], expected, atol=1e-5)
    assert not torch.allclose(featurizer(pictures[0], "a cat")["up1"], featurizer(pictures[0], "a dog")["up1"])
    tensors = torch.stack([as_tensor(picture) for picture in pictures])
    assert torch.allclose(featurizer(tensors, words)["mid"], whole["mid"], atol=1e-5)
    assert torch.allclose(featurizer(tensors[0], "a cat")["mid"][0], whole["mid"][0], atol=1e-5)


def test_settings_act(make, pictures):
    base = make(timestep=261)(pictures[0])["up1"]
    for options in ({"timestep": 1}, {"ensemble": 1}, {"seed": 1}, {"prompt": "a cat"}, {"precision": "bf16"}):
        assert not torch.allclose(base, make(**{"timestep": 261, **options})(pictures[0])["up1"], atol=1e-5), options
    half = make(timestep=261, precision="bf16")(pictures[0])["up1"]
    assert half.dtype == torch.float32 and torch.nn.functional.cosine_similarity(half, base).mean() > 0.99


def test_gradients_reach_the_pixels(make, pictures):
    tensor = as_tensor(pictures[0]).clamp(0.01, 0.99).requires_grad_()
    featurizer = make(("mid", "up1"), ensemble=1)
    assert not featurizer(tensor)["up1"].requires_grad
    featurizer(tensor, grad=True)["up1"].square().mean().backward()
    assert tensor.grad.isfinite().all() and (tensor.grad != 0).float().mean() > 0.9
    assert all(parameter.grad is None for parameter in featurizer._network.method.diffusion.parameters())


@pytest.mark.parametrize(
    ("fit", "size", "input_size"),
    [
        ("stretch", (80, 120), (64, 96)),
        ("keep", (80, 120), (64, 96)),
        ("keep", (200, 50), (96, 32)),
        ("pad", (90, 40), SIZE),
    ],
)
def test_size_and_where_cells_lie(make, fit, size, input_size):
    found = make(("up0", "up1"), fit=fit)(Image.new("RGB", size[::-1], (200, 30, 90)))
    assert found.frame.image_size == input_size and found.sizes == [size]
    assert found["up1"].shape[-2:] == tuple(side // 8 for side in input_size)
    points = torch.tensor([[0.0, 0.0], [size[1] / 2, size[0] / 3]])
    for layer in found:
        cells = found.to_cells(layer, points)
        assert torch.allclose(found.to_pixels(layer, cells), points, atol=1e-3)
    last = torch.tensor(found["up1"].shape[:1:-1]) - 1.0
    if fit == "pad":  # in the middle: 90 x 40 px became 64 x 28, with (96 - 28) / 2 = 34 black columns on the left
        assert torch.allclose(found.to_cells("up1", points)[0], torch.tensor([34 * last[0] / 95, 0]), atol=1e-3)
    else:
        assert torch.allclose(found.to_cells("up1", points)[0], torch.zeros(2))


def test_padding_is_black_and_the_picture_in_it_undistorted(make):
    from sd4match.featurizer import fit_pixels
    from utils.frame import Pad

    fitted = fit_pixels(torch.ones(1, 3, 90, 40), Pad((64, 96)))
    assert torch.allclose(fitted, torch.tensor([0.0] * 34 + [1.0] * 28 + [0.0] * 34).expand(1, 3, 64, 96))


def test_images_of_several_shapes(make):
    shapes = [Image.new("RGB", (80, 80)), Image.new("RGB", (80, 160))]
    with pytest.raises(ValueError, match=r'one shape, got 96 x 32 and 96 x 96 px.*fit "pad"|96 x 64'):
        make(fit="keep")(shapes)
    assert make(fit="pad")(shapes)["up1"].shape[0] == 2


# ---- DINO -----------------------------------------------------------------------------------------------------


def test_dinov2_as_its_own_map(world, pictures):
    folder = str(world.root / "dino")
    featurizer = Featurizer(folder, ("block0", "last", "block1.key"), image_size=(56, 84))
    found = featurizer(pictures)
    model, facts = load_vision("DINO", folder).model, dino_facts(folder)
    pixels = torch.nn.functional.interpolate(
        torch.stack([as_tensor(picture) for picture in pictures]), (56, 84), mode="bilinear", antialias=True
    )
    for name, layer, norm in (("last", -1, True), ("block0", 0, False)):
        assert torch.allclose(
            found[name], compute_dino_map(model, facts, pixels * 2 - 1, layer=layer, norm=norm), atol=1e-5
        )
    keys = []
    (key,) = (part for name, part in model.encoder.layer[1].named_modules() if name.endswith((".key", ".k_proj")))
    key.register_forward_hook(lambda m, i, output: keys.append(output))
    compute_dino_map(model, facts, pixels * 2 - 1)
    expected = keys[0][:, 1:].transpose(1, 2).unflatten(2, (4, 6))
    assert torch.allclose(found["block1.key"], expected, atol=1e-5)


@pytest.fixture(scope="module")
def dinov3(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dinov3") / "tiny"
    config = DINOv3ViTConfig(
        hidden_size=24, num_hidden_layers=3, num_attention_heads=2, intermediate_size=48, num_register_tokens=4
    )
    torch.manual_seed(0)
    DINOv3ViTModel(config).save_pretrained(folder)
    settings = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.2, 0.3]}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def test_dinov3(dinov3, pictures):
    found = Featurizer(str(dinov3), ("block1", "last", "block2.query"), image_size=(64, 96))(pictures)
    model = DINOv3ViTModel.from_pretrained(dinov3).eval()
    pixels = torch.nn.functional.interpolate(
        torch.stack([as_tensor(picture) for picture in pictures]), (64, 96), mode="bilinear", antialias=True
    )
    mean, std = (torch.tensor(values)[:, None, None] for values in ([0.4, 0.5, 0.6], [0.2, 0.2, 0.3]))
    with torch.no_grad():
        output = model((pixels - mean) / std, output_hidden_states=True)
    for name, tokens in (("last", output.last_hidden_state), ("block1", output.hidden_states[2])):
        expected = tokens[:, 5:].transpose(1, 2).unflatten(2, (4, 6))  # after the class token and four registers
        assert torch.allclose(found[name], expected, atol=1e-5)
    assert found["block2.query"].shape == (3, 24, 4, 6)


# ---- what cannot be used ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": "up7"}, "the UNet has no block up7; it has down0, .*up2"),
        ({"fit": "crop"}, "fit must be one of stretch, pad, keep; got 'crop'"),
        ({"image_size": (60, 96)}, "image_size .60, 96.*multiples of 32 px"),
        ({"timestep": 1000}, "TEST.TIMESTEP must be in 0..999; got 1000"),
        ({"prompt": "text"}, "prompt takes the words themselves"),
        ({"precision": "int8"}, "PRECISION must be one of auto, fp32"),
        ({"image_size": 0}, "image size must be positive"),
        ({"image_size": 10**6}, "image_size must be in 1..8192; got 1000000, 1000000"),
        ({"seed": 2**70}, "seed must be in 0..4294967295; got 1180591620717411303424"),
        ({"seed": -1}, "seed must be in 0..4294967295; got -1"),
    ],
)
def test_wrong_settings_are_named(make, options, message):
    with pytest.raises((ValueError, ConfigError), match=message):
        make(**options)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "no images"),
        (torch.zeros(1, 3, 40, 40, dtype=torch.uint8), "a tensor must be floating"),
        (torch.full((3, 40, 40), 2.0), r"values must lie in \[0, 1\]; these range from 2 to 2"),
        (torch.zeros(40, 40), "a tensor must be floating"),
        (["/nowhere.png"], "/nowhere.png: no such image"),
    ],
)
def test_wrong_images_are_named(make, images, message):
    with pytest.raises(ValueError, match=message):
        make()(images)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_batches_of_nothing(make, batch_size):
    with pytest.raises(ValueError, match=f"batch_size must be in 1..100000; got {batch_size}"):
        make()(torch.rand(3, 40, 40), batch_size=batch_size)


def test_wrong_layers_of_dino(world):
    with pytest.raises(ValueError, match="has no layer up1; it has block0, block0.query.*last"):
        Featurizer(str(world.root / "dino"), "up1")


def test_the_mini_networks_say_what_they_know(caplog):
    assert len(Featurizer("mini", "mid", ensemble=1)(torch.rand(2, 3, 40, 40))["mid"]) == 2
    assert "know only the rendered pictures" in caplog.text


def test_torch_hub(world):
    from config import ROOT

    featurizer = torch.hub.load(str(ROOT), "featurizer", str(world.root / "dino"), source="local", image_size=56)
    assert featurizer(torch.rand(2, 3, 30, 40))["last"].shape == (2, 24, 4, 4)
