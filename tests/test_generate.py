"""Images generated from prompts: deterministic by seed, and those of diffusers' own pipeline for the same words."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from engine import picture
from engine.build import build_generator
from model.backbone.generate import Generator
from model.backbone.load import load_stable_diffusion
from model.backbone.text import PromptEncoder
from model.prompt import new_prompt
from tests.test_train import NAME, assert_same_state, configure, log_folder, run


@pytest.fixture(scope="module")
def networks(world):
    return load_stable_diffusion(str(world.root / "sd"))


@pytest.fixture
def generator(networks):
    return Generator(networks, steps=2, guidance=3.0)


@pytest.fixture
def text(networks):
    return PromptEncoder(networks.text_encoder, networks.tokenizer)


def test_images_depend_on_their_seed_only(generator, text):
    embeds = text.encode_text(["a photo of a cat"])
    both, one = generator.generate(embeds, [4, 7]), generator.generate(embeds, [7])
    assert [image.shape for image in both] == [(64, 64, 3)] * 2 and both[0].dtype == np.uint8
    np.testing.assert_array_equal(both[1], one[0])
    assert (both[0] != both[1]).any()
    other = generator.generate(text.encode_text(["a photo of a dog"]), [7])
    assert (other[0] != one[0]).any()


def test_a_text_prompt_gives_the_images_of_the_stock_pipeline(world, generator, text):
    prompt = new_prompt("text", text, categories=("cat", "dog"))
    ours = generator.generate(generator.embed(prompt, {"category": ["dog"]}), [5])
    pipeline = StableDiffusionPipeline.from_pretrained(world.root / "sd", safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 2, "guidance_scale": 3.0, "generator": torch.Generator().manual_seed(5)}
    theirs = np.asarray(pipeline("a photo of a dog", **settings).images[0])
    assert np.abs(ours[0].astype(int) - theirs).max() <= 1


@pytest.mark.parametrize("variant", ["TokenEmbeds5", "HiddenState"])
def test_learned_prompts_of_both_spaces(generator, text, variant):
    prompt = new_prompt(f"Single_spair_tiny_{variant}", text)
    embeds = generator.embed(prompt, {})
    assert embeds.shape == (1, 77, 32)
    if variant == "HiddenState":
        torch.testing.assert_close(embeds, prompt.sequences())
    assert len(generator.generate(embeds, [0])) == 1


@pytest.mark.usefixtures("fresh_accelerator")
def test_pictures_of_a_validation_leave_the_run_as_it_is(world, tmp_path, monkeypatch, networks, text):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    built = []
    monkeypatch.setattr(picture, "build_generator", lambda *args: built.append(build_generator(*args)) or built[-1])
    steps = ["TRAIN.EPOCHS", "2", "TRAIN.BATCH_SIZE", "6"]
    plain = run(world, tmp_path / "plain", *steps)
    more = ["VAL.PICTURES", "1", "VAL.DENSE", "8", "VAL.GENERATE", "1", "GENERATE.STEPS", "2"]
    drawn = run(world, tmp_path / "drawn", *steps, *more)
    assert_same_state(plain, drawn)
    folder = log_folder(configure(world, tmp_path / "drawn"), tmp_path / "drawn")
    events = EventAccumulator(str(folder), size_guidance={"images": 0})
    events.Reload()
    kinds = {tag.split("/")[0] for tag in events.Tags()["images"]}
    assert kinds == {"val_matches", "val_correlation", "val_dense", "val_generated"}
    assert (tmp_path / "drawn" / "prompt" / NAME).is_dir()
    assert [image.step for image in events.Images("val_generated/0")] == [1, 2]
    assert len(built) == 1
    embeds = text.encode_text(["a photo of a cat"])
    fresh = Generator(networks, steps=2)
    np.testing.assert_array_equal(built[0].generate(embeds, [0])[0], fresh.generate(embeds, [0])[0])
