"""Defaults, merging order, checks; every experiment file loads; every key is read somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from config import ROOT, WITHOUT_EFFECT, ConfigError, dump_config, iter_keys, load_config
from engine.check import check_config

FILES = sorted(path for path in (ROOT / "config").rglob("*.yaml"))
BASELINES = {"dift", "dift_sd1-5", "dinov2", "sd_dino", "sd_dino_release", "cleandift"}  # tested as they are


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT / "config")))
def test_every_experiment_file_loads_and_passes_its_checks(path):
    check_config(load_config(str(path)), training=path.stem not in BASELINES)


def test_keys_without_effect_are_keys():
    assert set(WITHOUT_EFFECT) <= dict(iter_keys(load_config())).keys()


def test_order_is_default_file_flag_command_line(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("SEED: 1\nTRAIN: {LR: 0.5, EPOCHS: 2}\n")
    cfg = load_config(str(file), ["SEED", "3"], {"SEED": 2, "TRAIN.EPOCHS": 7, "TRAIN.LR": None})
    assert (cfg.SEED, cfg.TRAIN.EPOCHS, cfg.TRAIN.LR, cfg.TRAIN.BATCH_SIZE) == (3, 7, 0.5, 9)


def test_base_files_are_read_first(tmp_path):
    (tmp_path / "base.yaml").write_text("SEED: 1\nTRAIN: {EPOCHS: 2}\n")
    (tmp_path / "top.yaml").write_text("_BASE_: base.yaml\nSEED: 5\n")
    cfg = load_config(str(tmp_path / "top.yaml"))
    assert (cfg.SEED, cfg.TRAIN.EPOCHS) == (5, 2)


def test_circular_base_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("_BASE_: b.yaml\n")
    (tmp_path / "b.yaml").write_text("_BASE_: a.yaml\n")
    with pytest.raises(ConfigError, match="circle"):
        load_config(str(tmp_path / "a.yaml"))


def test_config_is_frozen_and_dump_reads_back(tmp_path):
    cfg = load_config("config/mini/sd4match_cpm.yaml", ["DATASET.IMAGE_SIZE", "(96, 128)", "TRAIN.LR", "1e-3"])
    with pytest.raises(AttributeError):
        cfg.SEED = 1
    file = tmp_path / "dump.yaml"
    file.write_text(dump_config(cfg))
    assert dict(iter_keys(load_config(str(file)))) == dict(iter_keys(cfg))
    assert cfg.DATASET.IMAGE_SIZE == (96, 128) and cfg.TRAIN.LR == 1e-3


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["TRAIN.LRR", "0.1"], r"unknown key TRAIN.LRR; did you mean TRAIN.LR"),
        (["TRAIN.EPOCHS", "many"], r"TRAIN.EPOCHS takes a value of type int such as 5, got the str 'many'"),
        (["TRAIN.EPOCHS", "2.5"], r"TRAIN.EPOCHS takes a value of type int"),
        (["DATASET.IMAGE_SIZE", "768"], r"DATASET.IMAGE_SIZE takes a value of type tuple"),
        (["NETWORK.RECOMPUTE", "1"], r"NETWORK.RECOMPUTE takes a value of type bool"),
        (["TRAIN", "3"], r"unknown key TRAIN"),
        (["SEED"], r"come in pairs"),
    ],
)
def test_wrong_settings_name_the_key(opts, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, opts)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["PROMPT.CPM", "Pair-DINO-Feat-G50-C50"], r"PROMPT.CPM.*75"),
        (["PROMPT.CPM", "Pair-DINO-Feat"], r"PROMPT.CPM"),
        (["METHOD.LAYER", "7"], r"METHOD.LAYER 7 does not exist.*up_blocks 0\.\."),
        (["DATASET.IMAGE_SIZE", "(97, 96)"], r"IMAGE_SIZE.*multiples of"),
        (["NETWORK.COMPILE", "fast"], r"NETWORK.COMPILE must be one of none, default"),
        (["NETWORK.MEMORY_FORMAT", "nhwc"], r"NETWORK.MEMORY_FORMAT must be one of auto, contiguous"),
        (["PROMPT.KIND", "single"], r"PROMPT.KIND must be one of Single, Class, CPM"),
        (["TRAIN.TIMESTEP", "1000"], r"TRAIN.TIMESTEP must be in 0..999"),
        (["TRAIN.STEP_RULES", "x", "TRAIN.SCHEDULER", "piecewise_constant"], r"STEP_RULES must look like"),
        (["NETWORK.NAME", "my_net"], r"NETWORK.NAME: 'my_net' cannot be a backbone"),
        (["NETWORK.NAME", "sd2-1"], r"NETWORK.NAME sd2-1 has cross_attention_dim 1024, but the network in"),
        (["NETWORK.INIT", "random", "NETWORK.ARCHITECTURE", "sd9"], r"NETWORK: .*sd9"),
        (["NETWORK.ATTENTION", "xformers"], r"needs the package xformers"),
        (["DEVICE", "gpu"], r"DEVICE must be"),
        (["DATASET.IMAGE_SIZE", "(96,)"], r"IMAGE_SIZE must be two positive numbers"),
        (["EVAL.ALPHAS", "(0.1, 0.1)"], r"EVAL.ALPHAS lists a value twice"),
        (["VAL.ALPHA", "0.3"], r"VAL.ALPHA"),
        (["TRAIN.LR", "-1.0"], r"TRAIN.LR must be a positive number"),
        (["TRAIN.LR", "nan"], r"TRAIN.LR must be a positive number"),
        (["EVAL.ALPHAS", "(0.1, .nan)"], r"EVAL.ALPHAS must be positive"),
        (["LOSS.KERNEL_SIZE", "4"], r"KERNEL_SIZE must be odd"),
        (["TRAIN.STEP_RULES", ""], r"STEP_RULES and TRAIN.SCHEDULER piecewise_constant go together"),
        (["EVAL.LOCALISERS", "[nn, argmax]"], r"EVAL.LOCALISERS: unknown argmax; known: nn, bilinear"),
        (["DATASET.NAME", "spar"], r"DATASET.NAME: unknown spar; known: spair, pfpascal, pfwillow"),
        (["LOSS.NAME", "mse"], r"LOSS.NAME: unknown mse"),
        (["PROMPT.INIT", "empty"], r"PROMPT.INIT 'empty' is for Single and Class"),
        (["PROMPT.INIT", "zeros"], r"PROMPT.INIT"),
    ],
)
def test_impossible_combinations_are_refused(opts, message):
    cfg = load_config("config/mini/sd4match_cpm.yaml", opts)
    with pytest.raises(ConfigError, match=message):
        check_config(cfg, training=True)


def test_prompt_of_another_backbone_is_refused():
    name = "CPM_spair_sd2-1_Pair-DINO-Feat-G25-C50"
    cfg = load_config("config/mini/sd4match_cpm.yaml", [], {"PROMPT.TYPE": name})
    with pytest.raises(ConfigError, match="trained for the backbone sd2-1, but NETWORK.NAME is mini"):
        check_config(cfg, training=False)


def test_all_problems_are_told_at_once():
    cfg = load_config("config/mini/sd4match_cpm.yaml", ["TRAIN.LR", "-1.0", "METHOD.LAYER", "9"])
    with pytest.raises(ConfigError) as error:
        check_config(cfg, training=True)
    assert "TRAIN.LR" in str(error.value) and "METHOD.LAYER" in str(error.value)


def test_broken_file_is_named(tmp_path):
    file = tmp_path / "broken.yaml"
    file.write_text("SEED: [1\n")
    with pytest.raises(ConfigError, match="broken.yaml is not valid YAML"):
        load_config(str(file))
    with pytest.raises(ConfigError, match="nowhere.yaml"):
        load_config(str(tmp_path / "nowhere.yaml"))


def test_every_key_is_read_somewhere():
    folders = ("dataset", "engine", "loss", "model", "script", "utils")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    files += [ROOT / name for name in ("train.py", "test.py", "pre_compute_dino_feature.py", "engine/check.py")]
    text = "\n".join(path.read_text() for path in files)
    unread = [key for key, _ in iter_keys(load_config()) if not re.search(rf"\.{key.split('.')[-1]}\b", text)]
    assert not unread


def test_every_key_is_explained():
    lines = (ROOT / "config/default.py").read_text().splitlines()
    assert [line for line in lines if line.startswith("_C.") and "CN()" not in line and "#" not in line] == []


def test_experiment_files_list_only_differences():
    for path in FILES:
        content = yaml.safe_load(path.read_text())
        base = content.pop("_BASE_", None)
        below = load_config(str(path.parent / base)) if base else load_config()
        merged = dict(iter_keys(load_config(str(path))))
        before = dict(iter_keys(below))
        named = {f"{s}.{k}" for s, v in content.items() if isinstance(v, dict) for k in v}
        named |= {k for k, v in content.items() if not isinstance(v, dict)}
        repeated = [key for key in named if merged[key] == before[key]]
        assert set(repeated) <= {"DATASET.NAME", "PROMPT.KIND", "PROMPT.TYPE"}, f"{path}: {repeated}"


def test_works_from_any_folder(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        "--dry_run",
        "--config_file",
        "config/mini/sd4match_cpm.yaml",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["NETWORK"]["NAME"] == "mini"
    assert not list(Path(tmp_path).iterdir())
