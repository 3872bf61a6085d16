"""The post-processor on layers under a prompt: one after the other, together, and what is refused."""

import json

import pytest
import torch
from torch.nn import functional as F

import train as train_script
from config import ConfigError
from engine.build import build_method
from model.prompt import new_prompt
from model.prompt.build import load_text
from model.prompt.store import read_prompt, save_prompt
from tests import tiny
from tests.command import reset_accelerate
from tests.test_geoaware_training import configure as configure_cached
from tests.test_geoaware_training import prepare
from utils.noise import derive_seeds, draw_noise
from utils.store import read_tensors

S3, S4, S5 = "up2.attentions.1", "up1.attentions.1", "up0.resnets.1"
SINGLE, PAIR = "Single_spair_tiny_TokenEmbeds5", "CPM_spair_tiny_Pair-DINO-Feat-G2-C3"
pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def configure(world, output, *more, training=True):
    more = ("METHOD.NAME", "geoaware_prompt", "DATASET.IMAGE_SIZE", "[64, 64]", "TEST.ENSEMBLE", "1", *more)
    return configure_cached(world, output, *more, training=training)


def write_prompt(cfg, output, name=SINGLE, seed=1):
    torch.manual_seed(seed)
    prompt = new_prompt(name, load_text(cfg), condition_shape=tiny.DINO_SHAPE, seed=seed)
    save_prompt(output / "prompt" / name, prompt)


SEEDS = torch.tensor([[1, 2], [3, 4]])


def test_maps_are_the_taps_under_the_prompt_beside_dinov2(world, tmp_path):
    cfg = configure(world, tmp_path, "PROMPT.TYPE", SINGLE, "TEST.TIMESTEP", "77", training=False)
    write_prompt(cfg, tmp_path)
    method, batch = prepare(cfg, "test", training=False)
    src_feat, trg_feat = method.pair_features(batch, SEEDS)
    assert src_feat.shape == (2, 16 + 24 + 32 + 24, 4, 4)

    z, seeds = batch["trg_posterior"].float()[:, :4], SEEDS[:, 1]
    std = (0.5 * batch["trg_posterior"].float()[:, 4:]).exp()
    z = 0.18215 * (z + std * draw_noise(derive_seeds(seeds, 0), z.shape[1:]))
    condition = method.embed(batch).expand(2, -1, -1)
    maps = method.diffusion.features(z, 77, condition, draw_noise(derive_seeds(seeds, 1), z.shape[1:]))
    joined = [F.interpolate(maps[tap], size=(8, 8), mode="bilinear", align_corners=False) for tap in (S3, S4, S5)]
    small = F.interpolate(torch.cat(joined, dim=1), size=(4, 4), mode="bilinear", align_corners=False)
    expected = torch.cat([F.normalize(small, dim=1), F.normalize(batch["trg_dino"].float(), dim=1)], dim=1)
    torch.testing.assert_close(trg_feat, expected, atol=1e-4, rtol=1e-4)


def test_one_after_the_other(world, tmp_path):
    """The prompt stays as it was learned, its features reach the post-processor, and it is told from another."""
    cfg = configure(world, tmp_path, "PROMPT.TYPE", SINGLE, "TRAIN.MAX_STEPS", "2")
    write_prompt(cfg, tmp_path)
    before = read_prompt(tmp_path / "prompt" / SINGLE).tensors
    method, batch = prepare(cfg)
    losses = method.loss(batch, SEEDS)
    losses.sum().backward()
    assert losses.shape == (2,) and all(p.grad is not None for p in method.head.bottleneck_layers.parameters())
    assert all(p.grad is None and not p.requires_grad for p in method.prompt.parameters())
    assert set(method.trainable) == {"head"}

    reset_accelerate()
    assert train_script.train(cfg, overwrite=False) == 0
    name = f"geoaware_prompt_spair_tiny_on_{SINGLE}"
    tensors, about = read_tensors(tmp_path / "prompt" / name / "weights.safetensors")
    assert all(key.startswith("head.") for key in tensors)
    assert about["made_by"]["prompt"] == SINGLE and len(about["made_by"]["weights of the prompt"]) == 32
    assert about["made_by"]["FEATURES.TAPS"] == [S3, S4, S5] and "FEATURES.FREEU" not in about["made_by"]
    after = read_prompt(tmp_path / "prompt" / SINGLE).tensors
    assert all(torch.equal(before[key], after[key]) for key in before)

    tested = ("METHOD.WEIGHTS", name)
    cfg = configure(world, tmp_path, *tested, "PROMPT.TYPE", SINGLE, training=False)
    learned, _ = prepare(cfg, "test", training=False)
    assert torch.equal(learned.head.mixing_weights, tensors["head.mixing_weights"])
    write_prompt(cfg, tmp_path, seed=5)
    with pytest.raises(ConfigError, match="other settings: weights of the prompt"):
        build_method(cfg, torch.device("cpu"), None)
    cfg = configure(world, tmp_path, *tested, "PROMPT.TYPE", "empty", training=False)
    with pytest.raises(ConfigError, match=f"other settings: prompt: '{SINGLE}' -> 'empty'"):
        build_method(cfg, torch.device("cpu"), None)


@pytest.mark.parametrize("kind", ["Single", "Pair"])
def test_together(world, tmp_path, kind):
    kinds = {
        "Single": ("PROMPT.KIND", "Single", "PROMPT.LENGTH", "5"),
        "Pair": ("PROMPT.KIND", "CPM", "PROMPT.CPM", "Pair-DINO-Feat-G2-C3"),
    }
    more = (*kinds[kind], "GEOAWARE.PROMPT_LR", "10", "TRAIN.MAX_STEPS", "2")
    cfg = configure(world, tmp_path, *more)
    method, batch = prepare(cfg)
    start = {name: value.clone() for name, value in method.trainable.state_dict().items()}
    assert any(name.startswith("prompt.") for name in start) and any(name.startswith("head.") for name in start)
    if kind == "Pair":
        assert batch["src_condition_mirrored"].shape == (2, *tiny.DINO_SHAPE)
    method.loss(batch, SEEDS).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in method.prompt.parameters())
    rates = {group["name"]: group["lr"] for group in method.build_optimizer(0.001, 0.1).param_groups}
    assert rates["head"] == 0.001 and rates["prompt"] == pytest.approx(0.01)

    reset_accelerate()
    assert train_script.train(cfg, overwrite=False) == 0
    (folder,) = (tmp_path / "prompt").iterdir()
    tensors, about = read_tensors(folder / "weights.safetensors")
    assert tensors.keys() == start.keys() and "_with_" in folder.name
    for part in ("head.", "prompt."):
        assert any(not torch.equal(tensors[name], start[name]) for name in tensors if name.startswith(part))
    assert about["made_by"]["prompt"] in folder.name
    cfg = configure(world, tmp_path, *more, "METHOD.WEIGHTS", folder.name, training=False)
    learned, batch = prepare(cfg, "test", training=False)
    loaded = learned.trainable.state_dict()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    assert learned.similarity(batch, SEEDS)(torch.zeros(2, 1, 2)).shape == (2, 1, 4, 4)
    assert json.loads(json.dumps(about))  # plain values


def test_layers_that_the_unet_lacks_are_refused(world, tmp_path):
    with pytest.raises(ConfigError, match="FEATURES.TAPS up5: layer must be one of"):
        configure(world, tmp_path, "FEATURES.TAPS", "[up5]")
