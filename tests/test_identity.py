"""What a run goes on from, what weights and results may replace: compared by content, wherever files lie."""

import json
import shutil

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

import test as test_script
from config import change_config, load_config
from engine.build import build_pairs
from engine.check import check_config
from engine.identity import differences, find_result, what_makes_result, what_makes_weights
from engine.report import build_result_stem
from model.error import PromptError
from tests.test_train import CPM, NAME, assert_same_state, run
from utils.checkpoint import CheckpointError, load_checkpoint, save_checkpoint

pytestmark = pytest.mark.usefixtures("fresh_accelerator")
STEP = ("TRAIN.MAX_STEPS", "1")


def weights(world, output, *more):
    cfg = load_config(None, world.opts(output, "PROMPT.CPM", CPM, *more))
    return what_makes_weights(cfg, build_pairs(cfg, "trn"), build_pairs(cfg, "val"))


def result(world, output, *more):
    cfg = load_config(None, world.opts(output, "PROMPT.TYPE", "text", *more))
    return what_makes_result(cfg, build_pairs(cfg, "test"))


def copy_data(world, root):
    shutil.copytree(world.root / "data", root)
    return "DATASET.ROOT", str(root)


def change_middle(path):
    """Another value in the middle of a weight file; size and both ends stay."""
    tensors = load_file(path)
    name = sorted(tensors)[len(tensors) // 2]
    tensors[name].view(-1)[0] += 1
    save_file(tensors, path, {"format": "pt"})


def change_unet(world, folder):
    """A copy of Stable Diffusion with another UNet, as a setting."""
    change_middle(shutil.copytree(world.root / "sd", folder) / "unet" / "diffusion_pytorch_model.safetensors")
    return "NETWORK.FOLDER", str(folder)


# ---- what counts, and what does not ----------------------------------------------------------------------


def test_copies_elsewhere_are_the_same(world, tmp_path):
    before, tested = weights(world, tmp_path), result(world, tmp_path)
    moved = [*copy_data(world, tmp_path / "data"), "CACHE_ROOT", str(tmp_path / "cache")]
    for key, name in (("CONDITION.DINO_FOLDER", "dino"), ("NETWORK.FOLDER", "sd")):
        moved += [key, str(shutil.copytree(world.root / name, tmp_path / name))]
    moved += ["METHOD.DINO_FOLDER", str(tmp_path / "dino"), "DATASET.NUM_WORKERS", "3", "EVAL.BATCH_SIZE", "9"]
    assert weights(world, tmp_path / "out", *moved) == before
    assert result(world, tmp_path / "out", *moved) == tested


@pytest.mark.parametrize(
    ("opts", "told"),
    [
        (["LOSS.BETA", "0.05"], "LOSS.BETA: 0.04 -> 0.05"),
        (["TRAIN.LR", "0.02"], "TRAIN.LR: 0.01 -> 0.02"),
        (["PRECISION", "bf16"], "PRECISION: 'fp32' -> 'bf16'"),
        (["SEED", "1"], "SEED: 0 -> 1"),
        (["TRAIN.SPLIT", "val"], "TRAIN.SPLIT: 'trn' -> 'val'"),
    ],
)
def test_settings_that_change_what_is_learned_are_told(world, tmp_path, opts, told):
    assert told in differences(weights(world, tmp_path), weights(world, tmp_path, *opts))


@pytest.mark.parametrize("opts", [["TEST.TIMESTEP", "1"], ["PROMPT.TEMPLATE", "{category}"], ["PRECISION", "fp32"]])
def test_settings_that_learning_does_not_read_are_no_difference(world, tmp_path, opts):
    assert differences(weights(world, tmp_path), weights(world, tmp_path, *opts)) == []


def test_a_test_reads_no_setting_of_training_but_its_own(world, tmp_path):
    before = result(world, tmp_path)
    assert differences(before, result(world, tmp_path, "TRAIN.LR", "0.5", "PROMPT.KIND", "Class")) == []
    for opts in (["TEST.TIMESTEP", "1"], ["PROMPT.TEMPLATE", "a {category}"], ["EVAL.BETA", "0.1"]):
        assert len(differences(before, result(world, tmp_path, *opts))) == 1


def test_networks_that_a_run_does_not_read_are_no_difference(world, tmp_path):
    """Any DINOv2 folder for a Single prompt; the method's own DINOv2 for all but those that read it."""
    single = ["PROMPT.KIND", "Single", "PROMPT.LENGTH", "5"]
    elsewhere = ["CONDITION.DINO_FOLDER", "/nowhere", "METHOD.DINO_FOLDER", "/nowhere", "METHOD.DINO_LAYER", "3"]
    assert differences(weights(world, tmp_path, *single), weights(world, tmp_path, *single, *elsewhere)) == []


@pytest.mark.parametrize(
    ("name", "file", "key", "told"),
    [
        ("sd", "unet/diffusion_pytorch_model.safetensors", "NETWORK.FOLDER", "networks"),
        ("sd", "vae/diffusion_pytorch_model.safetensors", "NETWORK.FOLDER", "posterior: fingerprint"),
        ("sd", "scheduler/scheduler_config.json", "NETWORK.FOLDER", "networks"),
        ("dino", "model.safetensors", "CONDITION.DINO_FOLDER", "condition: fingerprint"),
        ("dino", "preprocessor_config.json", "CONDITION.DINO_FOLDER", "condition: fingerprint"),
    ],
)
def test_any_change_of_a_network_is_noticed(world, tmp_path, name, file, key, told):
    before = weights(world, tmp_path)
    folder = shutil.copytree(world.root / name, tmp_path / "copy")
    if file.endswith("json"):
        (folder / file).write_text((folder / file).read_text() + " ")
    else:
        change_middle(folder / file)
    found = differences(before, weights(world, tmp_path, key, str(folder)))
    assert any(line.startswith(f"{told}: ") for line in found)


def test_any_change_of_the_data_is_noticed(world, tmp_path):
    before = weights(world, tmp_path)
    moved = copy_data(world, tmp_path / "data")
    spair = tmp_path / "data" / "SPair-71k"

    def told():
        return {
            line.split(": ")[0] + ": " + line.split(": ")[1]
            for line in differences(before, weights(world, tmp_path, *moved))
        }

    assert told() == set()
    layout = spair / "Layout" / "large" / "trn.txt"
    lines = layout.read_text().splitlines()
    layout.write_text("\n".join([lines[1], lines[0], *lines[2:]]) + "\n")
    assert told() == {"training pairs: annotations"}
    layout.write_text("\n".join(lines) + "\n")
    annotation = next((spair / "PairAnnotation" / "val").glob("*.json"))
    content = json.loads(annotation.read_text())
    annotation.write_text(json.dumps({**content, "trg_kps": [[x + 1, y] for x, y in content["trg_kps"]]}))
    assert told() == {"validation pairs: annotations"}
    annotation.write_text(json.dumps(content))
    image = next((spair / "JPEGImages").glob("*/*.jpg"))
    picture = Image.open(image)
    picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(image)
    assert {line.rpartition(": ")[2] for line in told()} == {"images"}


def test_a_key_that_is_younger_than_a_run_counts_as_its_default():
    new = {"SEED": 0, "TRAIN.LR": 0.01, "LOSS.BETA": 0.04, "networks": "abc"}
    old = {"SEED": 0, "networks": "abc", "A.KEY.THAT.IS.GONE": 3}
    assert differences(old, new) == []
    assert differences(old, {**new, "LOSS.BETA": 0.05}) == ["LOSS.BETA: 0.04 -> 0.05"]
    assert differences({}, {"networks": "abc"}) == ["networks: None -> 'abc'"]


# ---- runs ------------------------------------------------------------------------------------------------


def test_a_run_does_not_go_on_with_other_data_or_networks(world, tmp_path):
    moved = copy_data(world, tmp_path / "data")
    run(world, tmp_path / "out", *STEP)
    run(world, tmp_path / "out", *STEP, *moved)
    layout = tmp_path / "data" / "SPair-71k" / "Layout" / "large" / "trn.txt"
    lines = layout.read_text().splitlines()
    layout.write_text("\n".join([*lines[1:], lines[0]]) + "\n")
    with pytest.raises(CheckpointError, match="training pairs: annotations(?s:.)*start anew with --overwrite"):
        run(world, tmp_path / "out", *STEP, *moved)
    with pytest.raises(CheckpointError, match="networks: (?s:.)*--overwrite"):
        run(world, tmp_path / "out", *STEP, *change_unet(world, tmp_path / "sd"))


def test_a_run_goes_on_after_a_key_was_added_to_the_config(world, tmp_path):
    first = run(world, tmp_path, *STEP)
    (path,) = tmp_path.rglob("state.safetensors")
    state = load_checkpoint(path.parent)
    del state["made_by"]["LOSS.SIGMA"]
    save_checkpoint(path.parent, state)
    meta_path = tmp_path / "prompt" / NAME / "prompt.json"
    meta = json.loads(meta_path.read_text())
    del meta["made_by"]["LOSS.SIGMA"], meta["digest"]
    meta_path.write_text(json.dumps(meta))
    assert_same_state(first, run(world, tmp_path, *STEP))
    with pytest.raises(CheckpointError, match="LOSS.SIGMA: 1.5 -> 2.0"):
        run(world, tmp_path, *STEP, "LOSS.SIGMA", "2.0")


def test_the_best_prompt_of_a_run_is_not_replaced_by_another_run(world, tmp_path):
    """Another learning rate has its own log, but the same prompt folder."""
    run(world, tmp_path, *STEP)
    before = (tmp_path / "prompt" / NAME / "ckpt.pt").read_bytes()
    with pytest.raises(CheckpointError, match=rf"prompt/{NAME} holds (?s:.)*TRAIN.LR: 0.01 -> 0.02(?s:.)*OUTPUT_ROOT"):
        run(world, tmp_path, *STEP, "TRAIN.LR", "0.02")
    assert (tmp_path / "prompt" / NAME / "ckpt.pt").read_bytes() == before
    run(world, tmp_path, *STEP, "TRAIN.LR", "0.02", overwrite=True)
    assert (tmp_path / "prompt" / NAME / "ckpt.pt").read_bytes() != before


def test_a_prompt_of_unknown_origin_is_not_replaced_either(world, tmp_path):
    run(world, tmp_path, *STEP)
    (tmp_path / "prompt" / NAME / "prompt.json").unlink()
    shutil.rmtree(tmp_path / "log")
    with pytest.raises(CheckpointError, match=f"prompt/{NAME} holds what other settings"):
        run(world, tmp_path, *STEP)


def test_a_run_may_be_made_longer(world, tmp_path):
    run(world, tmp_path, *STEP)
    assert run(world, tmp_path, "TRAIN.MAX_STEPS", "2")["learner"]["counters"]["step"] == 2
    run(world, tmp_path / "linear", *STEP, "TRAIN.SCHEDULER", "linear")
    with pytest.raises(CheckpointError, match="TRAIN.MAX_STEPS: 1 -> 2"):
        run(world, tmp_path / "linear", "TRAIN.MAX_STEPS", "2", "TRAIN.SCHEDULER", "linear")


# ---- tests -----------------------------------------------------------------------------------------------


def evaluate(world, output, prompt, *more):
    cfg = load_config(None, world.opts(output, "TEST.ENSEMBLE", "1", *more), {"PROMPT.TYPE": prompt})
    check_config(cfg, training=False)
    test_script.test(cfg)
    return sorted((output / "prompt" / prompt).glob("*_result_*.json"))


@pytest.mark.parametrize(
    ("opts", "told"),
    [(["METHOD.LAYER", "2"], "METHOD.LAYER 1, now 2"), (["METHOD.POSTERIOR", "mode"], "'sample', now 'mode'")],
)
def test_a_prompt_is_not_tested_under_what_it_was_not_trained_for(world, tmp_path, opts, told):
    run(world, tmp_path, *STEP)
    with pytest.raises(PromptError, match=f"was trained under other settings: .*{told}"):
        evaluate(world, tmp_path, NAME, *opts)
    with pytest.raises(PromptError, match="was trained under other settings: networks"):
        evaluate(world, tmp_path, NAME, *change_unet(world, tmp_path / "sd"))


def test_results_of_other_weights_data_or_prompts_lie_side_by_side(world, tmp_path):
    """Under one NETWORK.NAME, one data set's name, one prompt's name."""
    first = evaluate(world, tmp_path, "text")
    assert evaluate(world, tmp_path, "text") == first and len(first) == 1
    content = first[0].read_text()
    assert len(evaluate(world, tmp_path, "text", *change_unet(world, tmp_path / "sd"))) == 2
    moved = copy_data(world, tmp_path / "data")
    assert len(evaluate(world, tmp_path, "text", *moved)) == 2
    annotation = next((tmp_path / "data" / "SPair-71k" / "PairAnnotation" / "test").glob("*.json"))
    described = json.loads(annotation.read_text())
    annotation.write_text(json.dumps({**described, "src_kps": [[x + 1, y] for x, y in described["src_kps"]]}))
    assert len(evaluate(world, tmp_path, "text", *moved)) == 3
    assert json.loads(first[0].read_text())["made_by"] == json.loads(content)["made_by"]


def test_a_result_of_a_prompt_that_was_trained_again_is_another(world, tmp_path):
    run(world, tmp_path, *STEP)
    assert len(evaluate(world, tmp_path, NAME)) == 1
    run(world, tmp_path, *STEP, "SEED", "1", overwrite=True)
    assert len(evaluate(world, tmp_path, NAME)) == 2


def test_results_are_found_by_what_made_them_also_where_a_network_is_not(world, tmp_path):
    evaluate(world, tmp_path, "text")
    cfg = load_config(None, world.opts(tmp_path, "TEST.ENSEMBLE", "1"), {"PROMPT.TYPE": "text"})
    pairs, stem = build_pairs(cfg, "test"), build_result_stem(cfg)
    assert find_result(stem, what_makes_result(cfg, pairs)) == stem
    gone = change_config(cfg, {"NETWORK.FOLDER": "nobody/nothing"})
    assert find_result(stem, what_makes_result(gone, pairs, download=False)) == stem
    for key, value in (("SEED", 1), ("EVAL.BETA", 0.1)):
        other = change_config(gone, {key: value})
        assert find_result(stem, what_makes_result(other, pairs, download=False)) is None
