"""The pretrained networks of the mini world and the captions and scores they were trained with."""

import contextlib
import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mini.pretrain import dino, pretrain
from mini.pretrain.captions import BACKGROUND, OBJECT, Caption, CaptionSampler, LabelSpace, part_words
from mini.pretrain.diffusion import denoising_loss
from mini.pretrain.loop import Run, Schedule, fit
from mini.pretrain.proxy import nearest_cells, part_transfer
from mini.pretrain.scenes import build_held_out_pairs, draw_scene, render, to_cells, to_parts
from mini.pretrain.words import BACKGROUND_WEIGHT, Statements, find_truth, word_loss
from mini.render.categories import KNOWN
from mini.render.comvg import Statement
from mini.render.relation import RELATIONS
from model.backbone.attention import read_layers

ROOT = Path(__file__).parents[1] / "asset" / "mini"
SD, WORDS, DINO = ROOT / "stable-diffusion", ROOT / "stable-diffusion-words", ROOT / "dinov2"


def category(fine, coarse_of, coarse):
    return SimpleNamespace(fine_parts=fine, coarse_of=coarse_of, coarse_parts=coarse, kin="")


WORLD = {
    "car": category(("roof", "left_wheel", "right_wheel"), (0, 1, 1), ("body", "wheels")),
    "dog": category(("head", "front_leg", "back_leg"), (0, 1, 1), ("head", "legs")),
}
# labels: 2 car, 3 car roof, 4 car wheel, 5-7 its parts, 8-19 their ends; 20 dog, 21 dog head, 22 dog leg, 23-25, 26-37
LEFT_WHEEL = frozenset({"left_wheel"})
WHEELS = frozenset({"left_wheel", "right_wheel"})
DETAIL = np.array([[0, 1, 6, 11], [0, 1, 6, 11]])  # ends 0, 1, 2 of the three parts
INSTANCE = np.array([[0, 1, 1, 1], [0, 2, 2, 2]])  # a car above a dog


@pytest.mark.parametrize(
    ("caption", "car", "dog"),
    [
        (Caption(""), [OBJECT] * 3, [OBJECT] * 3),
        (Caption("a photo of a car", frozenset({"car"})), [2, 2, 2], [BACKGROUND] * 3),
        (Caption("a dog and a car", frozenset({"car", "dog"})), [2, 2, 2], [20, 20, 20]),
        (Caption("a car, left", frozenset({"car"}), True, LEFT_WHEEL), [3, 6, 4], [BACKGROUND] * 3),
        (
            Caption("dog legs", frozenset({"dog"}), True, frozenset({"front_leg", "back_leg"})),
            [BACKGROUND] * 3,
            [21, 24, 25],
        ),
        (Caption("object, head", None, parts=frozenset({"head"})), [OBJECT] * 3, [23, OBJECT, OBJECT]),
        (
            Caption("a car, wheels in detail", frozenset({"car"}), True, WHEELS, True),
            [3, 13, 18],
            [BACKGROUND] * 3,
        ),
        (Caption("a photo of a cat", frozenset({"cat"})), [BACKGROUND] * 3, [BACKGROUND] * 3),
    ],
)
def test_each_kind_of_caption_asks_for_its_labels(caption, car, dog):
    labels = LabelSpace(WORLD).label_map(caption, DETAIL, INSTANCE, ["car", "dog"])
    assert labels.tolist() == [[BACKGROUND, *car], [BACKGROUND, *dog]]


def test_text_alone_tells_which_labels_are_asked_for():
    space = LabelSpace(WORLD)
    assert space.asked(Caption("a photo of a car", frozenset({"car"}))) == [2]
    assert space.asked(Caption("a car, left", frozenset({"car"}), True, LEFT_WHEEL)) == [3, 4, 6]
    assert space.asked(Caption("")) == [OBJECT]


def test_label_space_counts_every_category_kind_part_and_end_once():
    assert LabelSpace(WORLD).size == 2 + 2 * (1 + 2 + 3 + 3 * 4)


def test_words_name_parts_sides_plurals_and_coarse_parts():
    words = part_words(WORLD["car"])
    assert words["left wheel"] == words["left"] == {"left_wheel"}
    assert words["wheels"] == {"left_wheel", "right_wheel"}
    assert words["body"] == {"roof"}
    assert "roofs" not in words


def test_drawn_captions_are_reproducible_and_name_only_known_parts():
    objects = [{"category": "car", "colour": "red", "facing": "left"}]
    draws = [
        [CaptionSampler(WORLD).draw(rng, objects) for _ in range(200)]
        for rng in (np.random.default_rng(3), np.random.default_rng(3))
    ]
    assert draws[0] == draws[1]
    assert {part for caption in draws[0] for part in caption.parts} == set(WORLD["car"].fine_parts)
    assert any(caption.text == "a photo of a car" and not caption.parts for caption in draws[0])
    assert any(caption.categories == {"dog"} for caption in draws[0])  # a category the scene does not show


def test_kin_share_their_labels():
    wolf = SimpleNamespace(**vars(WORLD["dog"]) | {"kin": "dog"})
    space = LabelSpace(WORLD | {"wolf": wolf})
    assert space.size == LabelSpace(WORLD).size
    caption = Caption("a wolf, all parts", frozenset({"wolf"}), True, frozenset(wolf.fine_parts))
    assert space.asked(caption) == [23, 24, 25]
    assert space.label_map(caption, DETAIL, INSTANCE, ["car", "dog"]).max() == BACKGROUND


def test_statements_are_true_of_their_scene_or_ask_for_nothing():
    objects = [{"category": n, "colour": c, "facing": "left"} for n, c in (("car", "red"), ("dog", "blue"))]
    facts = {("car", "left of", "dog"), ("dog", "right of", "car")}
    sampler, rng, space = CaptionSampler(KNOWN), np.random.default_rng(0), LabelSpace(KNOWN)
    drawn = [sampler.draw(rng, objects, "left of") for _ in range(400)]
    said = [c for c in drawn if any(f" {relation} " in c.text for relation in RELATIONS)]
    assert 150 < len(said) < 330 and {caption.true for caption in said} == {True, False}
    for caption in said:
        text = caption.text.removeprefix("a photo of ")
        relation = next(word for word in RELATIONS if f" {word} " in text)
        things = [thing.removeprefix("a ").split() for thing in text.split(f" {relation} ")]
        colours = {"car": "red", "dog": "blue"}
        holds = (things[0][-1], relation, things[1][-1]) in facts
        holds &= all(len(thing) == 1 or colours.get(thing[-1]) == thing[0] for thing in things)
        assert holds == caption.true
        assert (space.label_map(caption, DETAIL, INSTANCE, ["car", "dog"]).max() > 0) == caption.true


def test_plain_captions_ask_for_kinds_of_part_at_first_alone():
    objects = [{"category": "car", "colour": "red", "facing": "left"}]
    sampler, plain = CaptionSampler(KNOWN), "a photo of a car"
    for share in (1.0, 0.0):
        rng = np.random.default_rng(0)
        drawn = [caption for _ in range(300) if (caption := sampler.draw(rng, objects, None, share)).text == plain]
        assert drawn and {caption.kinds for caption in drawn} == {bool(share)}


def test_what_is_absent_is_untrue_and_untrue_captions_take_no_part_in_denoising():
    objects = [{"category": "car", "colour": "red", "facing": "left"}]
    sampler, rng = CaptionSampler(KNOWN), np.random.default_rng(0)
    drawn = [sampler.draw(rng, objects) for _ in range(400)]
    absent = [caption for caption in drawn if caption.categories and "car" not in caption.categories]
    assert absent and not any(caption.true for caption in absent)
    velocity, target = torch.zeros(3, 4, 2, 2), torch.zeros(3, 4, 2, 2)
    velocity[0], velocity[1] = 2.0, 100.0
    assert denoising_loss(velocity, target, torch.tensor([True, False, True])).item() == 2.0
    assert denoising_loss(velocity, target, torch.tensor([False] * 3)).item() == 0.0


def test_part_transfer_of_known_features():
    part = np.array([[1, 1], [2, 0]])
    feat = torch.eye(4).reshape(4, 2, 2)
    same, mirrored = nearest_cells(feat, feat), nearest_cells(feat, feat.flip(2))
    assert part_transfer(same, part, part) == 1.0
    assert part_transfer(mirrored, part, part) == pytest.approx(0.5)
    assert np.isnan(part_transfer(same, part, np.zeros_like(part)))


def test_parts_of_their_ends():
    assert to_parts(np.array([0, 1, 4, 5, 8, 9], np.uint8)).tolist() == [0, 1, 1, 2, 2, 3]


def test_cells_keep_thin_parts_and_the_majority():
    part, instance = np.zeros((1, 8, 8), np.uint8), np.zeros((1, 8, 8), np.uint8)
    part[0, :, 0], part[0, :4, 4:7], part[0, :4, 7], part[0, 7, 7] = 3, 2, 1, 1
    instance[part > 0] = 2
    cells, objects = to_cells(part, instance)
    assert cells.tolist() == [[[3, 2], [3, 0]]]
    assert objects.tolist() == [[[2, 2], [2, 0]]]


def test_training_scenes_show_species_and_related_objects():
    drawn = [draw_scene(index) for index in range(300)]
    assert drawn == [draw_scene(index) for index in range(300)]
    assert {name for scene in drawn for name in scene["categories"]} == set(KNOWN)
    related = [(index, scene) for index, scene in enumerate(drawn) if scene["relation"]]
    assert 40 < len(related) < 120
    for index, scene in related[:4]:
        *_, objects, relation = render(index, **scene)
        assert relation == scene["relation"] and [o["category"] for o in objects] == list(scene["categories"])


# ---- attention on what words are true of

DOG, BIKE = ("red", "dog"), ("blue", "cargo_bike")
SEEN = Statement((DOG, BIKE), "left of")
THE_BIKE = [None, 1, 1, 1]


@pytest.mark.parametrize(
    ("said", "truth"),
    [
        (SEEN, [None, 0, 0, 0, 0, *THE_BIKE]),
        (Statement((DOG, BIKE), "above"), [None, 0, 0, None, *THE_BIKE]),
        (Statement((("green", "dog"), BIKE), "left of"), [None, None, 0, 0, 0, *THE_BIKE]),
        (Statement((("", "dog"), BIKE), "left of"), [None, 0, 0, 0, *THE_BIKE]),
        (Statement((DOG, ("blue", "car")), "left of"), [None, 0, 0, 0, 0, None, 1, None]),
        (Statement((BIKE, DOG), "right of"), [None] * 9),
    ],
)
def test_each_word_is_true_of_the_thing_that_it_tells_of(said, truth):
    assert find_truth(said, SEEN) == truth
    assert len(truth) == len(said.sentence.split())


@pytest.fixture(scope="module")
def pairs():
    return build_held_out_pairs(6)


def test_statements_are_drawn_with_the_places_of_which_their_words_are_true(pairs):
    statements = Statements(pairs)
    rows, texts, true, truth, spoken, things = statements.draw(60, np.random.default_rng(0))
    assert rows[:60].tolist() == rows[60:].tolist() and set(rows.tolist()) == set(range(6))
    said, others = texts[:60], texts[60:]
    assert true[:60].all() and true[60:].tolist() == [b in ("", a) for a, b in zip(said, others, strict=True)]
    assert 0 < others.count("") < 20 and "" not in said
    for row, text, true_of_it, *maps in zip(rows.tolist(), texts, true, truth, spoken, things, strict=True):
        names = {o["category"]: n for n, o in enumerate(pairs.objects[row], start=1)}
        places, words, anything = maps
        assert words.nonzero().flatten().tolist() == list(range(1, len(text.split()) + 1))
        assert torch.equal(anything > 0, torch.from_numpy(statements.instance[row] > 0))
        assert (places[words == 0] == 0).all()
        for token, word in enumerate(text.split(), start=1):
            if word in names:
                assert torch.equal(places[token] > 0, torch.from_numpy(statements.instance[row] == names[word]))
        if text and true_of_it:  # its relation is said of the first
            assert torch.equal(places[4], places[3])


def test_word_loss_is_that_of_a_plain_loop():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 3, 2, 2, 5, generator=generator)  # a layer half as fine as the maps
    truth, spoken = torch.zeros(2, 5, 4, 4), torch.tensor([[0, 1.0, 1, 0, 0], [0, 1, 1, 1, 0]])
    truth[0, 1, :2], truth[1, 3, 1:3] = 1, 1
    things = torch.zeros(2, 4, 4)
    things[0, :3], things[1, 1:3] = 1, 1
    sums = {name: [0.0, 0.0] for name in ("true", "untrue", "nowhere", "rest")}
    for n, head, y, x in itertools.product(range(2), range(3), range(2), range(2)):
        cell = (n, slice(2 * y, 2 * y + 2), slice(2 * x, 2 * x + 2))
        anything, logits = things[cell].mean(), scores[n, head, y, x]
        rest = sum(logits[j].exp() for j in range(5) if not spoken[n, j])
        sums["rest"] = [sums["rest"][0] + (1 + rest).log(), sums["rest"][1] + 1]
        for j in range(5):
            true = truth[n, j][cell[1:]].mean()
            shares = {"true": true, "untrue": spoken[n, j] * (1 - true) * anything}
            shares["nowhere"] = spoken[n, j] * (1 - true) * (1 - anything)
            for name, share in shares.items():
                logit = -logits[j] if name == "true" else logits[j]
                sums[name] = [sums[name][0] + share * (1 + logit.exp()).log(), sums[name][1] + share]
    weights = {"true": 1, "untrue": 1, "nowhere": BACKGROUND_WEIGHT, "rest": 1}
    expected = sum(weight * sums[name][0] / sums[name][1] for name, weight in weights.items())
    assert word_loss(scores, truth, spoken, things).item() == pytest.approx(float(expected), rel=1e-5)


# ---- the training loop


@pytest.mark.parametrize(("stage", "earlier"), [("diffusion", "vae"), ("words", "diffusion")])
def test_a_stage_without_what_it_goes_on_from_is_refused_before_rendering(tmp_path, stage, earlier):
    with pytest.raises(SystemExit, match=f"--stage {stage} goes on from .* not there: run --stage {earlier} first"):
        pretrain.main(["--stage", stage, "--work", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def fit_line(folder, stop_after=None):
    """Ten steps of a linear regression, killed after so many of them; returns the exported weights and the log."""
    torch.manual_seed(0)
    run, exported = Run("line", torch.nn.Linear(3, 1), Schedule(40, 4, 0.1, warmup=8, reports=2), folder), []

    def compute_loss(network, generator):
        if run.step == stop_after:
            raise KeyboardInterrupt
        x = torch.rand(4, 3, generator=generator)
        loss = (network(x) - x.sum(1, keepdim=True)).square().mean()
        return loss, {"loss": loss.item()}

    with contextlib.suppress(KeyboardInterrupt):
        fit(run, compute_loss, lambda network: {"weight": network.weight.sum().item()}, exported.append)
    return exported[0].state_dict() if exported else None, run.log


@pytest.mark.parametrize("step", [3, 7])
def test_killed_run_goes_on_as_if_it_had_not_been(tmp_path, step):
    whole, log = fit_line(tmp_path / "whole")
    assert fit_line(tmp_path / "killed", stop_after=step)[0] is None
    resumed, other = fit_line(tmp_path / "killed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert [line["samples"] for line in other] == [line["samples"] for line in log] == [20, 40]
    assert [line["weight"] for line in other] == [line["weight"] for line in log]
    again, _ = fit_line(tmp_path / "killed")  # a finished run only exports
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_checkpoint_of_another_recipe_is_refused(tmp_path):
    fit_line(tmp_path)
    run = Run("line", torch.nn.Linear(3, 1), Schedule(40, 8, 0.1), tmp_path)
    with pytest.raises(ValueError, match="line.pt was made by another recipe: remove it, or choose another --work"):
        run.resume()


# ---- DINOv2's crops


def test_crops_and_their_labels_stay_together():
    """A scene whose pixels are its labels, mirrored or not."""
    maps = torch.arange(96 * 96).view(1, 1, 96, 96).repeat(8, 1, 1, 1).float() % 96  # column
    pixels = (maps / 192).expand(-1, 3, -1, -1)
    crops, labels, mirrored = dino.draw_crops(pixels, maps, torch.Generator().manual_seed(0))
    assert crops.shape == (8, 3, 84, 84) and labels.shape == (8, 1, 12, 12)
    columns = labels[:, 0, 6]
    assert torch.equal(columns[:, -1] < columns[:, 0], mirrored) and 0 < mirrored.sum() < 8
    for crop, column in zip(crops[:, :, 3::7, 3::7], columns, strict=True):
        for channel in crop[:, 6]:
            gain = channel.sum() / column.sum()
            assert torch.allclose(channel, gain * column, atol=0.02)


def test_tokens_of_all_patches_are_the_network_s_own():
    teacher = dino.DinoTeacher(3, 2, 5).eval()
    pixels = torch.randn(2, 3, 84, 84, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(144, generator=torch.Generator().manual_seed(0)).expand(2, -1)
    with torch.no_grad():
        tokens, whole = teacher.tokens(pixels, order), teacher.network(pixels).last_hidden_state
    torch.testing.assert_close(tokens[:, 1:], whole[:, 1:][:, order[0]], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(tokens[:, 0], whole[:, 0], atol=1e-5, rtol=1e-4)


needs_networks = pytest.mark.skipif(not (SD / "model_index.json").exists(), reason=f"no networks in {ROOT}")


@pytest.fixture(scope="module")
def pipeline():
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(SD, safety_checker=None, local_files_only=True)


@pytest.fixture(scope="module")
def scenes():
    from mini.pretrain.scenes import HELD_OUT, build_held_out_store

    return build_held_out_store(3, HELD_OUT + 500)


@needs_networks
def test_pipeline_has_the_contract_of_stable_diffusion(pipeline):
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert pipeline.tokenizer.model_max_length == pipeline.text_encoder.config.max_position_embeddings == 77
    ids = pipeline.tokenizer("a photo of a dog", padding="max_length").input_ids
    assert len(ids) == 77
    assert ids[0] == pipeline.tokenizer.bos_token_id and ids[6] == pipeline.tokenizer.eos_token_id
    assert set(ids[7:]) == {0}
    assert pipeline.unet.config.cross_attention_dim == pipeline.text_encoder.config.hidden_size


@needs_networks
def test_latents_have_stride_four_and_unit_deviation(pipeline, scenes):
    from mini.pretrain.vae import encode

    moments = encode(pipeline.vae, scenes.image, torch.device("cpu"))
    assert moments.shape[1:] == (8, 24, 24)
    assert pipeline.vae.config.scaling_factor * moments[:, :4].float().std() == pytest.approx(1.0, abs=0.15)


@needs_networks
def test_all_files_together_are_small():
    assert sum(path.stat().st_size for folder in (SD, WORDS, DINO) for path in folder.rglob("*.*")) < 40e6


@needs_networks
def test_pipeline_draws_an_image(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a photo of a dog", num_inference_steps=2, output_type="np").images[0]
    assert image.shape == (96, 96, 3)
    assert np.isfinite(image).all()


@needs_networks
def test_text_grounds_the_features_better_than_no_text_and_random_weights(pipeline, scenes):
    from mini.pretrain.diffusion import build_unet, predict
    from mini.pretrain.proxy import encode_text, grounding_scores
    from mini.pretrain.vae import encode

    latents = (
        pipeline.vae.config.scaling_factor * encode(pipeline.vae, scenes.image, torch.device("cpu"))[:, :4].float()
    )
    torch.manual_seed(0)
    trained, random = (
        grounding_scores(
            lambda *inputs, unet=unet: predict(unet, *inputs)[1],
            lambda texts: encode_text(pipeline.tokenizer, pipeline.text_encoder, texts),
            pipeline.scheduler,
            latents,
            scenes,
            kinds,
        )
        for unet, kinds in (
            (pipeline.unet, ("empty", "text", "parts", "wrong")),
            (build_unet().eval(), ("text",)),
        )
    )
    assert min(trained["text"], trained["parts"]) > random["text"] + 0.1
    assert trained["wrong"] < trained["text"] > trained["empty"]
    assert trained["empty"] < trained["parts"]


@needs_networks
def test_features_for_matching_are_24_by_24(pipeline):
    from mini.pretrain.diffusion import predict

    x = torch.randn(2, 4, 24, 24, generator=torch.Generator().manual_seed(0))
    tokens = torch.zeros(2, 77, pipeline.unet.config.cross_attention_dim)
    with torch.no_grad():
        velocity, feat = predict(pipeline.unet, x, torch.tensor([50, 261]), tokens)
    assert velocity.shape == (2, 4, 24, 24)
    assert feat.shape == (2, 64, 24, 24)


@needs_networks
@torch.no_grad()
def test_attention_of_the_second_network_lies_where_its_words_are_true():
    from diffusers import StableDiffusionPipeline

    from mini.pretrain.scenes import HELD_OUT
    from mini.pretrain.tokenizer import tokenize
    from mini.pretrain.vae import encode

    network = StableDiffusionPipeline.from_pretrained(WORDS, safety_checker=None, local_files_only=True)
    scenes = build_held_out_pairs(24, HELD_OUT + 500)
    z = encode(network.vae, scenes.image, torch.device("cpu"))[:, :4].float()
    statements, timesteps = Statements(scenes), torch.full((24,), 114)
    said = [statements.describe(row, False)[0] for row in range(24)]
    tokens = network.text_encoder(tokenize(network.tokenizer, [s.sentence for s in said])).last_hidden_state
    x_t = network.scheduler.add_noise(z, torch.randn(z.shape, generator=torch.Generator().manual_seed(0)), timesteps)
    with read_layers(network.unet, ["up1.0"], (24, 24)) as found:
        network.unet(x_t, timesteps, tokens)
    scores, right = found["up1.0"].scores().mean(dim=1), []  # (24, 24, 24, 77)
    for row, statement in enumerate(said):
        masks = [torch.from_numpy(statements.instance[row] == number) for number in (1, 2)]
        for token, place in enumerate(find_truth(statement, statement), start=1):
            if place is not None and statement.sentence.split()[token - 1] not in statement.relation.split():
                own, other = (scores[row, ..., token][masks[i]].mean() for i in (place, 1 - place))
                right.append(bool(own > other))
    assert len(right) == 96 and np.mean(right) > 0.85


@needs_networks
def test_dinov2_knows_the_categories_of_unseen_scenes():
    from transformers import AutoImageProcessor, Dinov2Model

    from mini.pretrain.dino import class_tokens, knn_accuracy
    from mini.pretrain.scenes import HELD_OUT, build_held_out_store

    network = Dinov2Model.from_pretrained(DINO, local_files_only=True).eval()
    scenes = build_held_out_store(15, HELD_OUT + 500)
    names = [scene[0]["category"] for scene in scenes.objects]
    assert knn_accuracy(class_tokens(network, scenes.image, torch.device("cpu")), names) > 0.4
    pixels = AutoImageProcessor.from_pretrained(DINO, local_files_only=True)(scenes.image[0], return_tensors="pt")
    assert network(**pixels).last_hidden_state.shape == (1, 1 + 144, network.config.hidden_size)
