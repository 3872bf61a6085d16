"""Defaults, merging order, checks; every experiment file loads; every key is read somewhere."""

import contextlib
import math
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from config import ROOT, WITHOUT_EFFECT, ConfigError, dump_config, iter_keys, load_config
from engine.check import check_config

FILES = sorted(path for path in (ROOT / "config").rglob("*.yaml"))
# tested as they are
BASELINES = {"clip", "dift", "dift_sd1-5", "dinov2", "sd_dino", "sd_dino_release", "cleandift", "ldm_correspondence"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT / "config")))
def test_every_experiment_file_loads_and_passes_its_checks(path):
    check_config(load_config(str(path)), training=path.stem not in BASELINES)


def test_keys_without_effect_are_keys():
    assert all(any(key.startswith(name) for key in dict(iter_keys(load_config()))) for name in WITHOUT_EFFECT)


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
        (["NETWORK.MEMORY_FORMAT", "nhwc"], r"NETWORK.MEMORY_FORMAT must be one of contiguous, channels_last"),
        (["PROMPT.KIND", "single"], r"PROMPT.KIND: unknown single; known: Single, Class, CPM"),
        (["TRAIN.TIMESTEP", "1000"], r"TRAIN.TIMESTEP must be in 0..999"),
        (["TRAIN.STEP_RULES", "x", "TRAIN.SCHEDULER", "piecewise_constant"], r"STEP_RULES must be like"),
        (["NETWORK.NAME", "my_net"], r"NETWORK.NAME must be a word.*got 'my_net'"),
        (["NETWORK.FOLDER", "x" * 5000], r"NETWORK.FOLDER x+: not a diffusers folder"),
        (["NETWORK.UNET", "x/" * 3000], r"NETWORK.UNET .*: no UNet folder"),
        (["NETWORK.NAME", "sd2-1"], r"NETWORK.NAME sd2-1 has cross_attention_dim 1024, but the network in"),
        (["NETWORK.INIT", "random", "NETWORK.ARCHITECTURE", "sd9"], r"NETWORK: .*sd9"),
        (["DEVICE", "gpu"], r"DEVICE must be"),
        (["DATASET.IMAGE_SIZE", "(96,)"], r"IMAGE_SIZE must be two numbers"),
        (["EVAL.ALPHAS", "(0.1, 0.1)"], r"EVAL.ALPHAS must be one or more values, each once"),
        (["VAL.ALPHA", "0.3"], r"VAL.ALPHA"),
        (["TRAIN.LR", "-1.0"], r"TRAIN.LR must be in 1e-12..1000; got -1.0"),
        (["TRAIN.LR", ".nan"], r"TRAIN.LR must be in .*; got nan"),
        (["TRAIN.LR", "1e38"], r"TRAIN.LR must be in"),
        (["EVAL.BETA", "1e-40"], r"EVAL.BETA must be in 1e-06..1e\+06"),
        (["EVAL.ALPHAS", "(0.1, .nan)"], r"EVAL.ALPHAS must be in"),
        (["EVAL.ALPHAS", "[]"], r"EVAL.ALPHAS must be one or more values"),
        (["DATASET.IMAGE_SIZE", "[2147483648, 96]"], r"IMAGE_SIZE must be in 1..8192"),
        (["TRAIN.BATCH_SIZE", "2147483648"], r"TRAIN.BATCH_SIZE must be in 1..100000"),
        (["OUTPUT_ROOT", ""], r"OUTPUT_ROOT must be given"),
        (["NETWORK.NAME", "../../x"], r"NETWORK.NAME must be a word.*got '../../x'"),
        (["METHOD.WEIGHTS", "a/../.."], r"METHOD.WEIGHTS must be a name below OUTPUT_ROOT/prompt"),
        (["NETWORK.NAME", ".."], r"NETWORK.NAME must be a word.*got '..'"),
        (["DEVICE", "meta"], r"DEVICE meta: this machine, or this installation of PyTorch, has no such device"),
        (["DEVICE", "cuda:99"], r"DEVICE cuda:99: this machine"),
        (["TRAIN.STEP_RULES", "1:20,1:10,2"], r"STEP_RULES must be like"),
        (["TRAIN.STEP_RULES", "1.2.3:20,2"], r"STEP_RULES must be like"),
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
    for first, wrong, second, value in (
        ("TRAIN.LR", "-1.0", "VAL.DENSE", "1"),
        ("METHOD.LAYER", "9", "VAL.ALPHA", "0.3"),
    ):
        cfg = load_config("config/mini/sd4match_cpm.yaml", [first, wrong, second, value])
        with pytest.raises(ConfigError) as error:
            check_config(cfg, training=True)
        assert first in str(error.value) and second in str(error.value)


def test_broken_file_is_named(tmp_path):
    file = tmp_path / "broken.yaml"
    file.write_text("SEED: [1\n")
    with pytest.raises(ConfigError, match="broken.yaml is not valid YAML"):
        load_config(str(file))
    with pytest.raises(ConfigError, match="nowhere.yaml"):
        load_config(str(tmp_path / "nowhere.yaml"))


TRAPS = {  # what YAML 1.1 makes of a value is not what stands there; nothing must arrive as something else
    "NETWORK.RECOMPUTE: on": "takes a value of type bool such as False, got the str 'on'",
    "NETWORK.RECOMPUTE: yes": "got the str 'yes'",
    "TRAIN.EPOCHS: 1_000": "got the str '1_000'",
    "TRAIN.EPOCHS: 12:30": "got the str '12:30'",
    "TRAIN.EPOCHS: 010": "got the str '010'",
    "TRAIN.EPOCHS: 0x10": "got the str '0x10'",
    "TRAIN.EPOCHS: '5'": "got the str '5'",
    "TRAIN.EPOCHS: 2024-01-01": "got the str '2024-01-01'",
    "TRAIN.EPOCHS: true": "got the bool True",
    "TRAIN.LR: 1_0.5": "TRAIN.LR takes a value of type float such as 0.01, got the str '1_0.5'",
    "TRAIN.LR: nan": "got the str 'nan'",
    "TRAIN.LR: 0,1": "got the str '0,1'",
    "TRAIN.LR: 9007199254740993": "TRAIN.LR takes a value of type float",
    "TRAIN.EPOCHS:": "got nothing",
    "TRAIN.EPOCHS: !!int 3": "tags, anchors and aliases are not read",
    "TRAIN.EPOCHS: &a 3": "tags, anchors and aliases are not read",
    "TRAIN.EPOCHS: !!python/object/apply:os.getcwd []": "tags, anchors and aliases are not read",
    "PROMPT.TYPE: 1.10": "PROMPT.TYPE takes a value of type str",
    'PROMPT.TYPE: "a\\0b"': "PROMPT.TYPE holds a character that is no text: a.x00b",
    "DATASET.IMAGE_SIZE: [[96], [96]]": "DATASET.IMAGE_SIZE takes a value of type int",
    "TRAIN.LR: {a: {b: 1}}": "TRAIN.LR takes a value of type float such as 0.01, got the dict",
    "_BASE_: [a]": "_BASE_ must be the name of a file",
}


@pytest.mark.parametrize(("text", "message"), TRAPS.items())
def test_a_value_is_what_it_looks_like_or_refused(tmp_path, text, message):
    key, _, value = text.partition(":")
    section, _, name = key.rpartition(".")
    file = tmp_path / "trap.yaml"
    file.write_text(f"{section}:\n  {name}:{value}\n" if section else f"{text}\n")
    with pytest.raises(ConfigError, match=r"trap\.yaml.*" + message) as error:
        load_config(str(file))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("TRAIN: {LR: 0.1}\nSEED: 1\nTRAIN: {EPOCHS: 2}\n", r"TRAIN is given twice \(line 3\)"),
        ("TRAIN:\n  LR: 0.1\n  LR: 0.2\n", r"LR is given twice \(line 3\)"),
        ("a: [" * 3000, "nested too deeply"),
        ("- 1\n", "must hold `KEY: value` lines, got a list"),
        ("SEED: 1\n---\nSEED: 2\n", "not valid YAML: .*another document"),
        ("? [1]\n: 2\n", "a key must be a word"),
        ("SEED: " + "9" * 5000, "not valid YAML"),
        ("SEED: \x07", "not valid YAML"),
    ],
)
def test_what_a_file_cannot_mean_is_refused(tmp_path, text, message):
    file = tmp_path / "file.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=rf"file\.yaml.*{message}") as error:
        load_config(str(file))
    assert "\n" not in str(error.value)


def test_a_byte_order_mark_and_an_empty_section_change_nothing(tmp_path):
    file = tmp_path / "bom.yaml"
    file.write_bytes(
        "SEED: 3\nTRAIN:\n  # LR: 0.5\nPROMPT: {WITHOUT_CATEGORY: on, TEMPLATE: 12:30}\n".encode("utf-8-sig")
    )
    cfg = load_config(str(file))
    assert (cfg.SEED, cfg.TRAIN.LR, cfg.PROMPT.WITHOUT_CATEGORY, cfg.PROMPT.TEMPLATE) == (3, 0.01, "on", "12:30")


@pytest.mark.parametrize("text", ["1e-3", "on", "010", "~", "", "1_000", "2024-01-01", "a: b", "é\u3000ü", "[1]"])
def test_any_text_reads_back_from_a_dump(tmp_path, text):
    file = tmp_path / "dump.yaml"
    file.write_text(dump_config(load_config(None, ["PROMPT.WITHOUT_CATEGORY", text])), encoding="utf-8")
    assert text == load_config(str(file)).PROMPT.WITHOUT_CATEGORY


def test_fuzzed_files_are_read_or_refused_in_words(tmp_path):
    """Three hundred files: keys of the default with values of every kind, and bytes changed at random."""
    generator = random.Random(0)
    values = ["!!int x", "2024-01-01", "[[[1]]]", "{a: {b: c}}", "1e38", "-1e-40", "2147483648", "~", "", "''", "on"]
    values += ["012", "../..", "[1, x]", "[]", ".nan", "-.inf", "0", "-1", "9" * 20, "a\tb", "*a", "'\\x'", "é"]
    keys = [key for key, _ in iter_keys(load_config())]
    file = tmp_path / "fuzz.yaml"
    for _ in range(300):
        chosen = generator.sample(keys, generator.randint(1, 3))
        text = "".join(
            f"{key.rpartition('.')[0]}: {{{key.rpartition('.')[2]}: {generator.choice(values)}}}\n"
            if "." in key
            else f"{key}: {generator.choice(values)}\n"
            for key in chosen
        )
        data = bytearray(text.encode())
        for _ in range(generator.choice([0, 0, 1, 3])):
            data[generator.randrange(len(data))] = generator.randrange(256)
        file.write_bytes(data)
        for training in (True, False):
            with contextlib.suppress(ConfigError):
                check_config(load_config(str(file)), training=training)


def test_checking_a_usual_config_imports_no_torch():
    code = "import sys\nfrom config import load_config\nfrom engine.check import check_config\n"
    code += "for kind in ('single', 'class', 'cpm', 'cpm_batch3'):\n"
    code += "    check_config(load_config(f'config/spair/sd4match_{kind}.yaml'), training=True)\n"
    code += "assert not {'torch', 'diffusers', 'transformers'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_copy_that_the_release_keeps_is_trained_for_its_number_of_steps():
    """Three processes share an epoch's pairs; each takes batches of 3 of its third, and is validated after them."""
    for name, pairs, epochs in (("spair", 53340, 5), ("pfpascal", 2940, 90)):
        cfg = load_config(f"config/{name}/sd4match_cpm_batch3.yaml")
        assert cfg.TRAIN.BATCH_SIZE == 3
        assert math.ceil(pairs / 3 / 3) == cfg.VAL.EVERY
        assert cfg.TRAIN.MAX_STEPS == epochs * cfg.VAL.EVERY < cfg.TRAIN.EPOCHS * (pairs // 3)


def test_every_key_is_read_somewhere():
    folders = ("dataset", "engine", "loss", "model", "script", "sd4match", "utils")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    files += [ROOT / name for name in ("train.py", "test.py", "pre_compute_dino_feature.py", "engine/check.py")]
    text = "\n".join(path.read_text() for path in files)
    unread = [key for key, _ in iter_keys(load_config()) if not re.search(rf"\.{key.split('.')[-1]}\b", text)]
    assert not unread


def test_every_key_is_explained():
    lines = (ROOT / "config/default.py").read_text().splitlines()
    pairs = zip(lines, ["", *lines], strict=False)
    keys = [pair for pair in pairs if pair[0].startswith("_C.") and "CN()" not in pair[0]]
    assert [line for line, above in keys if "#" not in line and not above.startswith("#")] == []


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
    command = [sys.executable, str(ROOT / "train.py"), "--dry_run", "--config_file", "config/mini/sd4match_cpm.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["NETWORK"]["NAME"] == "mini"
    assert not list(Path(tmp_path).iterdir())
