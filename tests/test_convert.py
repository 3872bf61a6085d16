"""Prompts of the release by name, this project's own format, and the way between them."""

import json
import os
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

import test as test_script
from config import ConfigError, load_config
from engine.check import check_config
from engine.report import build_result_stem
from model.error import PromptError, PromptNotFoundError
from model.method.sd4match import SD4Match
from model.prompt import new_prompt
from model.prompt.cpm import parameter_shapes
from model.prompt.name import parse_prompt_name
from model.prompt.store import list_prompts, load_prompt, read_prompt, save_prompt, write_prompt
from script.convert_prompt import convert, main
from tests import tiny
from tests.command import call

D = tiny.TEXT_WIDTH
CPM = "CPM_spair_tiny_Pair-DINO-Feat-G2-C3"
NAMES = [CPM, "Single_spair_tiny_TokenEmbeds75", "Class_spair_tiny_HiddenState"]
CATEGORIES = ["bird", "cat"]


def drop_release_prompt(root, name, width=D):
    """What the authors' archive holds: one file, no description."""
    folder = root / name
    folder.mkdir(parents=True)
    if name.startswith("CPM"):
        shapes = parameter_shapes(parse_prompt_name(name), width, *tiny.DINO_SHAPE)
        tensors = {key: torch.rand(shape) for key, shape in shapes.items()}
        tensors["text_model_embeddings.position_ids"] = torch.arange(77)[None]
        torch.save(tensors, folder / "ckpt.pt")
    else:
        keys = ["dataset"] if name.startswith("Single") else CATEGORIES
        torch.save({key: torch.randn(1, 77, width) for key in keys}, folder / "caption.pt")
    return folder


@pytest.mark.usefixtures("fresh_accelerator")
@pytest.mark.parametrize("name", NAMES)
def test_prompts_of_the_release_are_tested_by_name_in_both_formats(world, tmp_path, name):
    torch.manual_seed(0)
    release = drop_release_prompt(tmp_path / "a" / "prompt", name)
    convert(release, tmp_path / "b" / "prompt", "own", None)
    tables = []
    for output in (tmp_path / "a", tmp_path / "b"):
        cfg = load_config(None, world.opts(output, "TEST.ENSEMBLE", "1"), {"PROMPT.TYPE": name})
        check_config(cfg, training=False)
        test_script.test(cfg)
        tables.append(Path(f"{build_result_stem(cfg)}_pairs.csv").read_text())
    assert tables[0] == tables[1] and tables[0].count("\n") == 5


@pytest.mark.parametrize("name", NAMES)
def test_conversion_there_and_back_keeps_every_bit(text, tmp_path, name):
    prompt = new_prompt(name, text, categories=CATEGORIES, condition_shape=tiny.DINO_SHAPE, seed=3)
    source = save_prompt(tmp_path / "in" / name, prompt, {"made_by": {"networks": "abc", "METHOD.LAYER": 1}})
    (source / "config.yaml").write_text("SEED: 1\n")
    own = convert(source, tmp_path / "own", "own", None)
    assert sorted(path.name for path in own.iterdir()) == [
        *("README.md", "config.yaml", "metrics.json", "prompt.json", "prompt.safetensors")
    ]
    back = convert(own, tmp_path / "back", "release", None)
    (file,) = back.glob("*.pt")
    before, after = (torch.load(folder / file.name, weights_only=True) for folder in (source, back))
    assert before.keys() == after.keys() == load_file(own / "prompt.safetensors").keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert json.loads((back / "prompt.json").read_text()) == json.loads((source / "prompt.json").read_text())
    assert (back / "config.yaml").read_text() == "SEED: 1\n" and not (back / "README.md").exists()
    loaded = load_prompt(own, text, backbone="tiny", categories=CATEGORIES, setting={"networks": "abc"})
    assert loaded.state_dict().keys() == prompt.state_dict().keys()
    assert list_prompts(tmp_path / "own") == list_prompts(tmp_path / "in") == [name]


def make_summary(value):
    row = {"all": value}
    pck = {"nn": {"0.1": row, "0.15": {"all": None}}}
    counts = {"pairs_without_points": 0, "points": 20}
    return {"protocol": "resized", "by": "image", "average": "pair", "pairs": 4, **counts, "pck": pck}


def test_the_card_tells_origin_and_results(text, tmp_path):
    prompt = new_prompt(NAMES[2], text, categories=CATEGORIES)
    made_by = {"networks": "abc", "TRAIN.TIMESTEP": 261, "PROMPT.INIT": "random"}
    meta = {"network": "owner/network", "made_by": made_by}
    source = save_prompt(tmp_path / NAMES[2], prompt, {**meta, "metrics": {"validation": make_summary(0.5)}})
    (source / f"spair_result_{NAMES[2]}_all_test.json").write_text(
        json.dumps({"summary": make_summary(0.25), "config": {}})
    )
    own = convert(source, tmp_path / "own", "own", None)
    card = (own / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: sd4match\n") and "base_model: owner/network\n" in card
    assert "| backbone | tiny (owner/network) |" in card and "| categories | bird, cat |" in card
    assert "| nn | 50.00 | - |" in card and "| nn | 25.00 | - |" in card
    assert f"--prompt_type {NAMES[2]} NETWORK.NAME tiny" in card
    metrics = json.loads((own / "metrics.json").read_text())
    assert metrics["validation"]["pck"]["nn"]["0.1"]["all"] == 0.5 and len(metrics["tests"]) == 1
    again = convert(own, tmp_path / "again", "own", None)
    assert json.loads((again / "metrics.json").read_text()) == metrics

    bare = convert(drop_release_prompt(tmp_path / "bare", CPM), tmp_path / "own", "own", None)
    assert "No result is known" in (bare / "README.md").read_text()
    assert read_prompt(bare).meta == {
        **{"name": CPM, "kind": "CPM", "dataset": "spair", "backbone": "tiny", "space": "token"},
        **{"learnable_tokens": 5, "width": D, "condition": "DINO-Feat"},
        "tensors": read_prompt(bare).meta["tensors"],
    }


@pytest.mark.usefixtures("fresh_accelerator")
@pytest.mark.parametrize("name", NAMES)
def test_the_command_of_the_card_tests_the_prompt(world, text, tmp_path, name):
    prompt = new_prompt(name, text, categories=CATEGORIES, condition_shape=tiny.DINO_SHAPE)
    training = "PROMPT.KIND", parse_prompt_name(name).kind, "METHOD.LAYER", "0"
    cfg = load_config(None, world.opts(tmp_path, *training))
    made_by = {"METHOD.LAYER": cfg.METHOD.LAYER, "networks": SD4Match.fingerprint(cfg)}
    meta = {**SD4Match.describe(cfg), "made_by": made_by}
    convert(save_prompt(tmp_path / "in" / name, prompt, meta), tmp_path / "prompt", "own", None)
    card = (tmp_path / "prompt" / name / "README.md").read_text()
    _, *command = shlex.split(re.search(r"```sh\n(.*)\n```", card)[1])
    data = ["DATASET.ROOT", str(world.root / "data"), "DATASET.IMAGE_SIZE", "[32, 32]", "DATASET.NUM_WORKERS", "0"]
    here = ["OUTPUT_ROOT", str(tmp_path), "DEVICE", "cpu", "TEST.ENSEMBLE", "1"]
    assert call(*command, *data, *here) == 0
    (result,) = (tmp_path / "prompt" / name).glob("*_result_*.yaml")
    assert yaml.safe_load(result.read_text())["METHOD"]["LAYER"] == 0


def test_one_folder_holds_one_prompt(text, tmp_path):
    folder = drop_release_prompt(tmp_path, CPM)
    stored = read_prompt(folder)
    assert "text_model_embeddings.position_ids" not in stored.tensors
    write_prompt(folder, stored, "own")
    assert sorted(os.listdir(folder)) == ["prompt.json", "prompt.safetensors"]
    with safe_open(folder / "prompt.safetensors", "pt") as file:
        assert set(file.keys()) == set(stored.tensors)
    torch.save(stored.tensors, folder / "ckpt.pt")
    with pytest.raises(PromptError, match=r"holds both ckpt.pt and prompt.safetensors: delete"):
        read_prompt(folder)
    (folder / "ckpt.pt").unlink()
    whole = (folder / "prompt.safetensors").read_bytes()
    (folder / "prompt.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PromptError, match=r"prompt.safetensors is corrupt"):
        read_prompt(folder)


def test_mismatches_are_refused_before_any_network_is_loaded(tmp_path):
    wrong = drop_release_prompt(tmp_path, CPM).rename(tmp_path / CPM.replace("C3", "C4"))
    with pytest.raises(PromptError, match=r"alpha_cond is \(1, 3, 32\), expected \(1, 4, 32\)"):
        convert(wrong, tmp_path / "own", "own", None)
    assert convert(wrong, tmp_path / "own", "own", CPM).name == CPM
    with pytest.raises(PromptError, match="is no prompt name"):
        convert(wrong.rename(tmp_path / "best"), tmp_path / "own", "own", None)
    single = drop_release_prompt(tmp_path, NAMES[1])
    torch.save({"dataset": torch.zeros(1, 70, D)}, single / "caption.pt")
    with pytest.raises(PromptError, match=r"'dataset' is \(1, 70, 32\), expected \(1, 77, 32\)"):
        read_prompt(single)
    with pytest.raises(PromptNotFoundError, match="there are: "):
        read_prompt(tmp_path / NAMES[2])
    folder = drop_release_prompt(tmp_path / "deep", NAMES[2])
    with pytest.raises(ConfigError, match="is the prompt itself; choose another --output"):
        convert(folder, tmp_path / "deep", "own", None)
    with pytest.raises(PromptError, match="text is a prompt in words"):
        read_prompt(folder, "text")


@pytest.mark.parametrize("name", NAMES)
def test_a_released_prompt_of_another_width_or_backbone_is_refused(world, text, tmp_path, name):
    folder = drop_release_prompt(tmp_path, name, width=2 * D)
    with pytest.raises(PromptError, match="another Stable Diffusion version|does not fit .* text width 32"):
        load_prompt(folder, text, backbone="tiny", condition_shape=tiny.DINO_SHAPE)
    with pytest.raises(PromptError, match="trained for the backbone tiny .*, but NETWORK.NAME is sd2-1"):
        load_prompt(folder, text, backbone="sd2-1")
    cfg = load_config(None, world.opts(tmp_path, "NETWORK.NAME", "sd1-4"), {"PROMPT.TYPE": name})
    with pytest.raises(ConfigError, match="trained for the backbone tiny, but NETWORK.NAME is sd1-4"):
        check_config(cfg, training=False)


def test_the_command_line(tmp_path, monkeypatch, capsys):
    folder = drop_release_prompt(tmp_path, CPM)

    def call(*words):
        monkeypatch.setattr("sys.argv", ["convert_prompt.py", *words, "--output", str(tmp_path / "own")])
        return main(), *capsys.readouterr()

    status, out, _ = call(str(folder))
    assert status == 0
    assert out.startswith(f"{CPM}: written prompt.safetensors, prompt.json, metrics.json, README.md in ")
    status, _, err = call("Single_spair_sd2-1_TokenEmbeds75")
    assert status == 1 and "there is no prompt Single_spair_sd2-1_TokenEmbeds75" in err
