"""SD4Match's features: noise, ensemble, prompts, gradients, frozen networks."""

import pytest
import torch

from model.backbone.diffusion import Diffusion, draw_latents
from model.backbone.facts import network_facts
from model.backbone.load import load_stable_diffusion
from model.backbone.text import PromptEncoder
from model.method import find_method
from model.method.sd4match import SD4Match, expand_prompt
from model.prompt import new_prompt
from tests import tiny
from utils.noise import derive_seeds, draw_noise, noise_seeds

CATEGORIES = ["cat", "dog"]
PER_IMAGE = [
    "text",
    "empty",
    "Single_spair_tiny_TokenEmbeds9",
    "Single_spair_tiny_HiddenState",
    "Class_spair_tiny_TokenEmbeds9",
    "CPM_spair_tiny_Img-DINO-Feat-G2-C3",
]
PAIR = "CPM_spair_tiny_Pair-DINO-Feat-G2-C3"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny.build_tiny_stable_diffusion(tmp_path_factory.mktemp("sd")))


def build(folder, prompt_name=PAIR, dtype=torch.float32, **settings):
    networks = load_stable_diffusion(folder, parts=("unet", "text_encoder", "tokenizer", "scheduler"), dtype=dtype)
    text = PromptEncoder(networks.text_encoder, networks.tokenizer)
    prompt = new_prompt(prompt_name, text, categories=CATEGORIES, condition_shape=tiny.DINO_SHAPE)
    diffusion = Diffusion(networks.unet, networks.scheduler, (f"up{settings.pop('layer', 1)}",))
    return SD4Match(diffusion, text, prompt, image_size=tiny.IMAGE_SIZE, **settings)


def make_pairs(n=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    batch = {"category": [CATEGORIES[i % 2] for i in range(n)]}
    for side in ("src", "trg"):
        batch[f"{side}_posterior"] = torch.randn(n, 8, 8, 8, generator=generator)
        batch[f"{side}_condition"] = torch.randn(n, *tiny.DINO_SHAPE, generator=generator)
    return batch, torch.stack([noise_seeds(0, 0, torch.arange(n), side) for side in (0, 1)], dim=1)


def images_of(batch, side):
    images = {key.removeprefix(f"{side}_"): value for key, value in batch.items() if key.startswith(side)}
    return {**images, "category": batch["category"]}


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*PER_IMAGE, PAIR])
@torch.no_grad()
def test_pairs_give_two_float32_maps(folder, name):
    matcher = build(folder, name)
    batch, seeds = make_pairs()
    src, trg = matcher.pair_features(batch, seeds)
    assert src.shape == trg.shape == (3, *matcher_shape(folder))
    assert src.dtype == torch.float32 and src.isfinite().all() and not torch.allclose(src, trg)
    assert matcher.per_image == (name != PAIR)
    assert matcher.reads == (("posterior", "condition") if "CPM" in name else ("posterior",))


def matcher_shape(folder):
    return network_facts(folder).feature_shape(tiny.IMAGE_SIZE, 1)


@pytest.mark.parametrize("name", PER_IMAGE)
@torch.no_grad()
def test_images_one_by_one_equal_images_in_pairs(folder, name):
    matcher = build(folder, name, ensemble=2)
    batch, seeds = make_pairs()
    src, trg = matcher.pair_features(batch, seeds)
    close(matcher.features(images_of(batch, "src"), seeds[:, 0]), src)
    trg_images = images_of(batch, "trg")
    one = {key: value[1:2] for key, value in trg_images.items()}
    close(matcher.features(one, seeds[1:2, 1]), trg[1:2])


def test_a_pair_prompt_has_no_features_per_image(folder):
    matcher = build(folder)
    batch, seeds = make_pairs()
    with pytest.raises(ValueError, match="depends on the pair: use pair_features"):
        matcher.features(images_of(batch, "src"), seeds[:, 0])


@torch.no_grad()
def test_features_do_not_depend_on_the_batch(folder):
    matcher = build(folder, ensemble=2)
    batch, seeds = make_pairs()
    src, trg = matcher.pair_features(batch, seeds)
    last = {key: value[2:] for key, value in batch.items()}
    one_src, one_trg = matcher.pair_features(last, seeds[2:])
    close(one_src, src[2:])
    close(one_trg, trg[2:])


@torch.no_grad()
def test_the_ensemble_is_the_mean_of_single_draws(folder):
    """Recomputed from the paper's formula with the whole UNet and a hook."""
    matcher = build(folder, "empty", ensemble=3)
    batch, seeds = make_pairs(2)
    feature = matcher.features(images_of(batch, "src"), seeds[:, 0])

    networks = load_stable_diffusion(folder)
    hooked = []
    networks.unet.up_blocks[1].register_forward_hook(lambda *args: hooked.append(args[2]))
    noise = draw_noise(derive_seeds(seeds[:, 0], 0), (4, 8, 8))
    latents = draw_latents(batch["src_posterior"], 0.18215, noise)
    abar = networks.scheduler.alphas_cumprod[261]
    prompt_embeds = matcher.text.encode_text([""]).expand(2, -1, -1)
    for draw in (1, 2, 3):
        eps = draw_noise(derive_seeds(seeds[:, 0], draw), (4, 8, 8))
        networks.unet(abar.sqrt() * latents + (1 - abar).sqrt() * eps, 261, prompt_embeds)
    close(feature, torch.stack(hooked).mean(dim=0))


@torch.no_grad()
def test_the_posterior_is_sampled_or_its_mode(folder):
    batch, seeds = make_pairs()
    other = torch.cat([batch["src_posterior"][:, :4], batch["src_posterior"][:, 4:] - 3], dim=1)
    images, narrower = images_of(batch, "src"), images_of({**batch, "src_posterior": other}, "src")
    sample, mode = (build(folder, "empty", posterior=kind) for kind in ("sample", "mode"))
    assert torch.equal(mode.features(images, seeds[:, 0]), mode.features(narrower, seeds[:, 0]))
    assert not torch.allclose(sample.features(images, seeds[:, 0]), sample.features(narrower, seeds[:, 0]))


@torch.no_grad()
def test_noise_follows_the_seeds(folder):
    matcher = build(folder, "empty")
    images = images_of(make_pairs()[0], "src")
    images["posterior"] = images["posterior"][:1].expand(3, -1, -1, -1)
    feature = matcher.features(images, torch.tensor([5, 5, 6]))
    close(feature[0], feature[1])
    assert not torch.allclose(feature[0], feature[2])


def test_gradients_reach_the_prompt_and_nothing_else(folder):
    matcher = build(folder).train()
    frozen = {key: value.clone() for key, value in matcher.state_dict().items() if not key.startswith("prompt")}
    optimizer = torch.optim.Adam(matcher.prompt.param_groups(0.01))
    batch, seeds = make_pairs()
    before = [parameter.detach().clone() for parameter in matcher.prompt.parameters()]
    src, trg = matcher.pair_features(batch, seeds)
    (src - trg).square().mean().backward()
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, matcher.prompt.parameters(), strict=True))
    for module in (matcher.diffusion, matcher.text):
        assert not any(m.training for m in module.modules())
        assert all(p.grad is None and not p.requires_grad for p in module.parameters())
    state = matcher.state_dict()
    assert all(torch.equal(state[key], value) for key, value in frozen.items())


@pytest.mark.parametrize("name", ["Class_spair_tiny_TokenEmbeds9", PAIR])
def test_one_prompt_row_serves_both_images_of_a_pair(folder, name):
    matcher = build(folder, name)
    calls = []
    matcher.text.text_model.register_forward_hook(lambda *args: calls.append(len(args[2].last_hidden_state)))
    matcher.pair_features(*make_pairs(3))
    assert calls == [3]


def test_prompt_rows_are_expanded_to_sources_then_targets():
    rows = torch.arange(3.0)[:, None, None]
    assert expand_prompt(rows[:1], 4).flatten().tolist() == [0, 0, 0, 0]
    assert expand_prompt(rows, 6).flatten().tolist() == [0, 1, 2, 0, 1, 2]
    assert expand_prompt(rows, 3).flatten().tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="gave 3 rows for 4 images"):
        expand_prompt(rows, 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close_to_float32(folder, dtype):
    batch, seeds = make_pairs()
    batch = {key: value.half() if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
    with torch.no_grad():
        full, _ = build(folder).pair_features(batch, seeds)
    matcher = build(folder, dtype=dtype)
    half, _ = matcher.pair_features(batch, seeds)
    assert half.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(full.flatten(1), half.flatten(1)).min() > 0.999
    half.square().mean().backward()
    assert all(p.grad.isfinite().all() and p.dtype == torch.float32 for p in matcher.prompt.parameters())


def test_wrong_settings_are_refused(folder):
    with pytest.raises(ValueError, match="no block up3; it has down0"):
        build(folder, "empty", layer=3)
    with pytest.raises(ValueError, match="unknown method 'sift'; known: cleandift, .*sd4match, sd_dino"):
        find_method("sift")
