"""The pretrained networks of the mini world and the captions and scores they were trained with."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mini.pretrain.captions import BACKGROUND, OBJECT, Caption, CaptionSampler, LabelSpace, part_words
from mini.pretrain.proxy import nearest_cells, part_transfer
from mini.pretrain.scenes import to_cells, to_parts

ROOT = Path(__file__).parents[1] / "asset" / "mini"
SD, DINO = ROOT / "stable-diffusion", ROOT / "dinov2"


def category(fine, coarse_of, coarse):
    return SimpleNamespace(fine_parts=fine, coarse_of=coarse_of, coarse_parts=coarse)


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
    assert sum(path.stat().st_size for folder in (SD, DINO) for path in folder.rglob("*.*")) < 40e6


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
