"""The score of texts and images against direct computations, and the adapter of its UNet."""

import math

import pytest
import torch
from diffusers import EulerDiscreteScheduler, UNet2DConditionModel

from model.adapter import DIFFUSERS_FILE, add_adapter, export_adapter, read_published
from model.backbone.architecture import STABLE_DIFFUSION
from model.backbone.attention import name_layers, read_layers
from model.backbone.image_text import ImageTextScore, find_layers, list_timesteps
from model.backbone.load import load_stable_diffusion
from model.backbone.text import PromptEncoder
from model.method.dsd import DSD, margin_loss
from utils.noise import derive_seeds, draw_noise
from utils.store import StoreError

TEXTS = ("a red dog left of a blue car", "a bird")


def build_score(world, **options):
    networks = load_stable_diffusion(str(world.root / "sd"))
    return ImageTextScore(
        networks.unet, networks.scheduler, PromptEncoder(networks.text_encoder, networks.tokenizer), **options
    )


def inputs(rows=2):
    draw = torch.Generator().manual_seed(1)
    z, eps = (torch.randn(rows, 4, 8, 8, generator=draw) for _ in range(2))
    return z, torch.tensor([100, 700])[torch.arange(rows) % 2], eps


def base_unet():
    """Stable Diffusion 2-1-base without storage."""
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(STABLE_DIFFUSION["sd2-1-base"]["unet"])


# ---- the score ------------------------------------------------------------------------------------------------


def test_attention_is_the_logsumexp_of_the_logits(world):
    """By hooks on the projections, a loop over rows and heads."""
    score, (z, t, eps) = build_score(world), inputs()
    modules, kept = name_layers(score.unet), {}
    for name in score.layers:
        for part in ("to_q", "to_k"):
            getattr(modules[name], part).register_forward_hook(
                lambda module, inputs, output, key=(name, part): kept.__setitem__(key, output)
            )
    found = score.measure(z, t, score.encode(TEXTS), eps)
    for place, name in enumerate(score.layers):
        query, key = kept[name, "to_q"], kept[name, "to_k"]
        heads = modules[name].heads
        for row in range(2):
            means = []
            for q, k in zip(query[row].chunk(heads, dim=-1), key[row].chunk(heads, dim=-1), strict=True):
                logits = q @ k.T / math.sqrt(q.shape[-1])
                means.append(logits.exp().sum(dim=-1).log().mean())
            assert found.layers[row, place] == pytest.approx(float(torch.stack(means).mean()), rel=1e-5)


def test_keys_of_zero_give_log_77(world):
    score, (z, t, eps) = build_score(world), inputs()
    for module in name_layers(score.unet).values():
        torch.nn.init.zeros_(module.to_k.weight)
    assert torch.allclose(score.measure(z, t, score.encode(TEXTS), eps).layers, torch.tensor(math.log(77)))
    score.temperature = 2.0
    assert torch.allclose(score.measure(z, t, score.encode(TEXTS), eps).layers, torch.tensor(math.log(77) / 2))


def test_six_layers_of_stable_diffusion_2_1_base():
    unet = base_unet()
    names = find_layers(unet)
    modules = {id(module): name for name, module in unet.named_modules()}
    places = [modules[id(name_layers(unet)[name])] for name in names]
    assert places == [
        *(f"down_blocks.2.attentions.{i}.transformer_blocks.0.attn2" for i in (0, 1)),
        "mid_block.attentions.0.transformer_blocks.0.attn2",
        *(f"up_blocks.3.attentions.{i}.transformer_blocks.0.attn2" for i in (0, 1, 2)),
    ]
    with torch.no_grad(), torch.device("meta"), read_layers(unet, names, (64, 64), stop=False) as found:
        unet(torch.empty(1, 4, 64, 64), torch.zeros(1), torch.empty(1, 77, 1024))
    assert [found[name].size for name in names] == [(16, 16)] * 2 + [(8, 8)] + [(64, 64)] * 3
    assert [found[name].query.shape[1] for name in names] == [20, 20, 20, 5, 5, 5]
    assert {found[name].query.shape[-1] for name in names} == {64}


def test_attention_is_the_mean_of_the_layers_and_noise_the_gain(world):
    score, (z, t, eps) = build_score(world), inputs()
    terms = score.score(z, TEXTS, t, eps)
    empty, text = (score.measure(z, t, score.encode(words), eps) for words in (["", ""], TEXTS))
    assert torch.allclose(terms.attention, (empty.layers.mean(dim=1) + text.layers.mean(dim=1)) / 2)
    x_t = score.scheduler.add_noise(z, eps, t)
    abar = score.scheduler.alphas_cumprod[t][:, None, None, None]
    for row, words in enumerate(TEXTS):  # this UNet predicts v
        errors = []
        for condition in (score.encode([""])[0], score.encode([words])[0]):
            v = score.unet(x_t[row : row + 1], t[row], condition).sample
            predicted = abar[row].sqrt() * v + (1 - abar[row]).sqrt() * x_t[row]
            errors.append((eps[row] - predicted).norm())
        assert float(terms.noise[row]) == pytest.approx(float(errors[0] - errors[1]), abs=1e-4)
    assert torch.allclose(terms.total, terms.attention + terms.noise)


@pytest.mark.parametrize("kind", ["epsilon", "sample"])
def test_other_predictions_are_turned_into_noise(world, kind):
    """A UNet that is told the truth makes no error."""
    score, (z, t, eps) = build_score(world), inputs()
    score.scheduler.register_to_config(prediction_type=kind)
    x_t = score.scheduler.add_noise(z, eps, t)
    predicted = score._find_noise({"epsilon": eps, "sample": z}[kind], x_t, t)
    assert torch.allclose(predicted, eps, atol=1e-4)


def test_options_of_the_attention(world):
    (z, t, eps), base = inputs(), build_score(world)
    empty, text = (base.measure(z, t, base.encode(words), eps).layers for words in (["", ""], TEXTS))

    def attention(**options):
        return build_score(world, **options).score(z, TEXTS, t, eps).attention

    assert torch.allclose(attention(unconditional="none"), text.mean(dim=1))
    assert torch.allclose(attention(unconditional="subtract"), text.mean(dim=1) - empty.mean(dim=1), atol=1e-6)
    weighted = (empty + text) / 2 @ torch.tensor([0.0, 3.0, 1.0, 1.0]) / 5  # down1, mid, two of up2
    assert torch.allclose(attention(weights=(0.0, 3.0, 1.0)), weighted)
    hot = attention(temperature=50.0)
    assert (hot < attention()).all()  # towards the largest logit, without the log of the number of tokens
    assert (attention(tokens="words") < attention()).all()


def test_rows_at_a_time_recomputation_and_terms_change_nothing(world):
    z, t, eps = inputs()
    whole = build_score(world).score(z, TEXTS, t, eps)
    for options in ({"rows": 1}, {"rows": 3}, {"recompute": True}):
        other = build_score(world, **options).score(z, TEXTS, t, eps)
        assert torch.allclose(other.total, whole.total, atol=1e-4)
    alone = build_score(world, terms="attention").score(z, TEXTS, t, eps)
    assert torch.allclose(alone.total, whole.attention, atol=1e-5) and alone.noise.isnan().all()
    alone = build_score(world, terms="noise").score(z, TEXTS, t, eps)
    assert torch.allclose(alone.total, whole.noise, atol=1e-4) and alone.attention.isnan().all()


def test_attention_alone_stops_after_the_last_layer(world):
    score, (z, t, eps) = build_score(world, terms="attention"), inputs()
    seen = []
    score.unet.conv_out.register_forward_hook(lambda *_: seen.append(1))
    score.score(z, TEXTS, t, eps)
    assert not seen


def test_texts_are_cut_and_kept(world):
    score = build_score(world)
    embeds, summed = score.encode(["word " * 200, ""])
    assert embeds.shape == (2, 77, 32) and summed.all()
    ids = score.text.token_ids(["word " * 200], truncate=True)
    assert ids.shape == (1, 77) and ids[0, -1] == score.text.tokenizer.eos_token_id
    calls = []
    score.text.text_model.register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(score.encode([""])[0][0], embeds[1]) and not calls
    assert torch.equal(score.encode([""], masked=True)[0], score.encode([""])[0])
    assert not torch.allclose(score.encode(["a dog"], masked=True)[0], score.encode(["a dog"])[0])


def test_words_are_without_begin_and_padding(world):
    score = build_score(world, tokens="words")
    _, summed = score.encode(["", "ab"])
    assert summed.sum(dim=1).tolist() == [1, 3] and not summed[:, 0].any()  # letters and the end


@pytest.mark.parametrize(
    ("steps", "count", "first"), [(10, 10, 89), (30, 30, 32), (40, 40, 14), (50, 49, 29), (200, 196, 14)]
)
def test_table_of_timesteps(steps, count, first):
    found = list_timesteps(steps)
    assert (len(found), found[0], found[-1]) == (count, first, 989)
    assert found == sorted(found) and len({b - a for a, b in zip(found, found[1:], strict=False)}) == 1


def test_noising_is_that_of_euler(world):
    score, (z, _, eps) = build_score(world), inputs()
    euler = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    abar = euler.alphas_cumprod
    for t in (0, 14, 261, 500, 989):
        sigma = ((1 - abar[t]) / abar[t]).sqrt()
        found = score.scheduler.add_noise(z, eps, torch.tensor([t, t]))
        assert torch.allclose(found, (z + sigma * eps) / (sigma**2 + 1).sqrt(), atol=1e-5)


# ---- the method -----------------------------------------------------------------------------------------------


def build_method(world, adapter=None, rows=0, **options):
    score = build_score(world, rows=rows)
    adapter = add_adapter(score.unet, 2) if adapter else None
    return DSD(score, adapter, **{"steps": 4, **options})


def make_batch(items, texts=3, images=1):
    """Items (B) by number: each has its own texts and posteriors, and names its images by them."""
    draw = {i: torch.randn(images, 8, 8, 8, generator=torch.Generator().manual_seed(i)) * 0.5 for i in items}
    names = [[f"image{i}-{n}" for n in range(images)] for i in items]
    words = [[f"text {n} of {i}" for n in range(texts)] for i in items]
    batch = {"texts": words, "identifiers": names, "posterior": torch.stack([draw[i] for i in items])}
    seeds = torch.tensor([[100 * i + n for n in range(images)] for i in items])
    return batch, seeds


def score_plainly(method, batch, seeds):
    """Every candidate by itself, each with its own row under the empty text; loops in place of batches."""
    found = []
    for b, texts in enumerate(batch["texts"]):
        for text in texts:
            for i in range(len(batch["identifiers"][b])):
                z = method._draw_latents(batch["posterior"][b, i : i + 1], seeds[b, i : i + 1])
                total = 0.0
                for k, t in enumerate(method.timesteps):
                    eps = draw_noise(derive_seeds(torch.tensor([method.seed]), k), (4, 8, 8))
                    total += float(method.score.score(z, [text], torch.tensor([t]), eps).total)
                found.append(total / len(method.timesteps))
    return torch.tensor(found).view(len(batch["texts"]), -1)


@pytest.mark.parametrize(("texts", "images"), [(3, 1), (1, 2), (2, 2)])
def test_shared_rows_are_those_of_the_plain_form(world, texts, images):
    method, (batch, seeds) = build_method(world), make_batch([1, 2], texts, images)
    found = method.rank(batch, seeds)
    plain = score_plainly(method, batch, seeds)
    assert found["score"].shape == (2, texts * images)
    assert torch.allclose(found["score"], plain, rtol=1e-4)
    assert torch.allclose(found["score"], found["attention"] + found["noise"])


def test_a_latent_is_a_sample_of_the_posterior_or_its_mode(world):
    posterior = torch.cat([torch.full((1, 4, 8, 8), 3.0), torch.full((1, 4, 8, 8), math.log(4.0))], dim=1)
    sample, mode = (
        build_method(world, posterior=kind)._draw_latents(posterior, torch.tensor([5])) / 0.18215
        for kind in ("sample", "mode")
    )
    assert torch.allclose(mode, torch.tensor(3.0)) and float(sample.std()) == pytest.approx(2.0, rel=0.2)


def test_scores_do_not_depend_on_the_batch(world):
    method = build_method(world)
    together = method.rank(*make_batch([1, 2, 3]))["score"]
    again = build_method(world)
    alone = torch.cat([again.rank(*make_batch([i]))["score"] for i in (3, 1, 2)])
    assert torch.allclose(together, alone[[1, 2, 0]], rtol=1e-4)
    pooled = build_method(world, pool=3)
    mean = pooled.rank(*make_batch([1, 2, 3]))
    assert torch.allclose(mean["attention"], method.rank(*make_batch([1, 2, 3]))["attention"].mean(0).expand(3, -1))
    assert not torch.allclose(mean["score"], together, rtol=1e-4)


def test_an_image_goes_under_a_text_once(world, monkeypatch):
    method, rows = build_method(world), []
    method.score.unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    first = method.rank(*make_batch([1, 2]))["score"]
    method.rank(*make_batch([2, 3]))
    assert rows == [2 + 6] * 4 + [1 + 3] * 4  # the empty text and their own
    assert torch.equal(method.rank(*make_batch([2]))["score"], first[1:]) and len(rows) == 8
    batch, seeds = make_batch([4])
    batch["texts"] = [["other", "same", "same"]]
    rows.clear()
    found = method.rank(batch, seeds)["score"][0]
    assert rows == [1 + 2] * 4 and found[1] == found[2] != found[0]
    rows.clear()
    fresh = method.at(0, 1)  # weights may have changed
    monkeypatch.setattr("model.method.dsd.KEPT", 3)
    assert torch.allclose(fresh.rank(*make_batch([1, 2]))["score"], first, rtol=1e-4)
    assert rows == [2 + 6] * 4 and len(fresh._known) == 3


def test_resampled_latents_are_others_for_every_candidate(world):
    method = build_method(world, resample=True)
    batch, seeds = make_batch([1], texts=2)
    batch["texts"] = [["same", "same"]]
    found = method.rank(batch, seeds)["score"]
    assert found[0, 0] != found[0, 1] and not method._known
    pair, both = make_batch([3, 1], texts=2)
    pair["texts"][1] = ["same", "same"]
    assert torch.allclose(build_method(world, resample=True).rank(pair, both)["score"][1:], found, rtol=1e-5)
    shared = build_method(world).rank(batch, seeds)["score"]
    assert shared[0, 0] == pytest.approx(float(shared[0, 1]), rel=1e-6)


# ---- loss and adapter -------------------------------------------------------------------------------------------


def test_loss_of_the_hardest_wrong_candidate():
    scores = torch.tensor([[1.0, 0.95, 0.2]], requires_grad=True)
    loss = margin_loss(scores, 0.1)
    assert loss.item() == pytest.approx(0.05)
    loss.sum().backward()
    assert scores.grad.tolist() == [[-1.0, 1.0, 0.0]]
    assert margin_loss(torch.tensor([[1.0, 0.5]]), 0.1).item() == 0
    ten = torch.cat([torch.zeros(2, 1), torch.arange(18.0).view(2, 9) / 10], dim=1)
    assert torch.allclose(margin_loss(ten, 0.1), torch.tensor([0.9, 1.8]))


@pytest.mark.parametrize("shared", [False, True])
def test_training_scores_are_those_of_the_plain_form(world, shared):
    method = build_method(world, adapter=True, share_draws=shared)
    batch, seeds = make_batch([1, 2], texts=2, images=2)
    losses = method.loss(batch, torch.tensor([[5, 0], [6, 0]]))
    scores = []
    for b in (0, 1):
        for t in (0, 1):
            for i in (0, 1):
                own = derive_seeds(torch.tensor([5 + b]), i + 2 * t * (not shared))
                drawn = derive_seeds(torch.tensor([5 + b]), 0) if shared else own
                z = method._draw_latents(batch["posterior"][b, i : i + 1], own)
                eps = draw_noise(derive_seeds(drawn, 1), (4, 8, 8))
                text = [batch["texts"][b][t]]
                scores.append(method.score.score(z, text, method._draw_timesteps(drawn), eps).total)
    assert torch.allclose(losses, margin_loss(torch.cat(scores).view(2, 4), 0.1), atol=1e-4)
    losses.sum().backward()
    grads = {name: p.grad for name, p in method.adapter.named_parameters()}
    assert any(grad.abs().sum() > 0 for grad in grads.values() if grad is not None)
    assert {name for name, p in method.named_parameters() if p.requires_grad} == {
        name for name, p in method.named_parameters() if ".lora_" in name
    }


def test_gradients_are_clipped_and_may_be_zero(world):
    method = build_method(world, adapter=True, max_grad_norm=0.5, weight_decay=0.0)
    optimizer = method.build_optimizer(0.1, 1.0)
    parameters = list(method.adapter.parameters())
    before = [p.detach().clone() for p in parameters]
    for p in parameters:
        p.grad = torch.zeros_like(p)
    optimizer.step()  # every candidate was beaten by more than the margin
    assert all(torch.equal(p, old) for p, old in zip(parameters, before, strict=True))
    for p in parameters:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert torch.cat([p.grad.flatten() for p in parameters]).norm() == pytest.approx(0.5, rel=1e-3)


def test_timesteps_of_training_are_uniform(world):
    drawn = build_method(world)._draw_timesteps(torch.arange(3000))
    assert drawn.min() >= 0 and drawn.max() <= 999 and abs(drawn.float().mean() - 499.5) < 20
    assert len(drawn.unique()) > 900


def test_adapter_of_stable_diffusion_2_1_base():
    tensors = add_adapter(base_unet(), 4).state_dict()
    assert len(tensors) == 256 and sum(value.numel() for value in tensors.values()) == 829_952
    assert {value.dtype for value in tensors.values()} == {torch.float32}
    assert "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0.lora_B.weight" in tensors


def test_a_new_adapter_changes_nothing_and_starts_from_the_seed(world):
    (z, t, eps), score = inputs(), build_score(world)
    before = score.score(z, TEXTS, t, eps).total
    adapter = add_adapter(score.unet, 2, seed=3)
    assert torch.equal(score.score(z, TEXTS, t, eps).total, before)
    down = torch.cat([value.flatten() for name, value in adapter.state_dict().items() if "lora_A" in name])
    assert down.std() == pytest.approx(0.5, rel=0.05)
    same, other = (add_adapter(build_score(world).unet, 2, seed=seed).state_dict() for seed in (3, 4))
    assert all(torch.equal(value, same[name]) for name, value in adapter.state_dict().items())
    assert not all(torch.equal(value, other[name]) for name, value in same.items())


def fill(adapter):
    draw = torch.Generator().manual_seed(7)
    for parameter in adapter.parameters():
        parameter.data = torch.randn(parameter.shape, generator=draw) * 0.1
    return adapter.state_dict()


def release_name(name):
    """As the release's files call a tensor."""
    place, projection, side = name.removesuffix(".weight").replace("to_out.0", "to_out").rsplit(".", 2)
    return f"{place}.processor.{projection}_lora.{ {'lora_A': 'down', 'lora_B': 'up'}[side] }.weight".replace(" ", "")


@pytest.mark.parametrize("form", ["release", "diffusers 0.17", "diffusers", "peft"])
def test_files_of_others_give_the_outputs_of_merged_weights(world, tmp_path, form):
    (z, t, eps), score, merged = inputs(), build_score(world), build_score(world)
    adapter = add_adapter(score.unet, 2)
    tensors = fill(adapter)
    wanted = score.score(z, TEXTS, t, eps).total
    for name, module in merged.unet.named_modules():
        if f"{name}.lora_A.weight" in tensors:
            module.weight.data += tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
    assert torch.allclose(merged.score(z, TEXTS, t, eps).total, wanted, atol=1e-4)
    if form == "release":
        torch.save({release_name(name): value for name, value in tensors.items()}, tmp_path / "pytorch_model.bin")
    elif form == "diffusers 0.17":
        from safetensors.torch import save_file

        named = {f"unet.{release_name(name)}": value for name, value in tensors.items()}
        save_file(named, tmp_path / DIFFUSERS_FILE)
    else:
        export_adapter(tmp_path, tensors, "tiny")
        other = {"diffusers": "adapter_model.safetensors", "peft": DIFFUSERS_FILE}[form]
        (tmp_path / other).unlink()
    found = read_published(tmp_path)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], value) for name, value in tensors.items())


def test_diffusers_and_peft_load_what_is_saved(world, tmp_path):
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    (z, t, eps), score, other, third = inputs(), build_score(world), build_score(world), build_score(world)
    export_adapter(tmp_path, fill(add_adapter(score.unet, 2)), "tiny")
    wanted = score.score(z, TEXTS, t, eps).total
    other.unet.load_lora_adapter(load_file(tmp_path / DIFFUSERS_FILE), prefix="unet")
    assert torch.allclose(other.score(z, TEXTS, t, eps).total, wanted, atol=1e-4)
    inject_adapter_in_model(LoraConfig.from_pretrained(tmp_path), third.unet)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    named = {name.removeprefix("base_model.model."): value for name, value in tensors.items()}
    assert not set_peft_model_state_dict(third.unet, named).unexpected_keys
    assert torch.allclose(third.score(z, TEXTS, t, eps).total, wanted, atol=1e-4)


def test_a_file_that_is_no_adapter_is_refused(tmp_path):
    with pytest.raises(StoreError, match="holds no adapter"):
        read_published(tmp_path)
    torch.save({"conv.weight": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(StoreError, match="'conv.weight' is the name of no LoRA matrix"):
        read_published(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(StoreError, match="pytorch_model.bin cannot be read"):
        read_published(tmp_path / "pytorch_model.bin")
