"""What a config may say: choices, ranges and combinations, checked before anything slow starts.

PyTorch is imported only for a device, loss or localiser that is not the default's.
"""

import importlib
import os
import re
from collections.abc import Iterator

from yacs.config import CfgNode as CN

from config import ConfigError, get_default_config, resolve_network, resolve_path
from model.backbone.architecture import HUB_IDS, STABLE_DIFFUSION
from model.backbone.device import resolve_device
from model.backbone.facts import (
    differing_unet_entries,
    dino_facts,
    find_unet,
    is_hub_id,
    network_facts,
    read_config,
    split_hub_file,
)
from model.method import METHODS, find_method
from model.prompt.name import parse_cpm, parse_prompt_name

# What one value, or each of several, must be: one of some words ...
CHOICES = {
    "PRECISION": ("auto", "fp32", "fp16", "bf16"),
    "DATASET.FRAME": ("stretch", "bicubic", "pad"),
    "DATASET.THRESHOLD": ("", "bbox", "image", "kps", "padded_kps", "src_bbox", "bbox_width"),
    "NETWORK.INIT": ("pretrained", "random"),
    "NETWORK.MEMORY_FORMAT": ("contiguous", "channels_last"),
    "NETWORK.COMPILE": ("none", "default"),
    "CONDITION.DINO_POSITIONS": ("scale", "size"),
    "METHOD.POSTERIOR": ("sample", "mode"),
    "METHOD.DINO_POSITIONS": ("scale", "size"),
    "METHOD.DINO_INPUT": ("normalised", "release"),
    "DSD.TERMS": ("both", "attention", "noise"),
    "DSD.UNCONDITIONAL": ("mean", "none", "subtract"),
    "DSD.TOKENS": ("all", "words"),
    "LDM.NOISE": ("uniform", "normal"),
    "PROMPT.SPACE": ("TokenEmbeds", "HiddenState"),
    "TRAIN.SCHEDULER": ("constant", "linear", "piecewise_constant", "one_cycle"),
    "POSE.ALIGN": ("none", "mask", "mutual_nn"),
    "EVAL.INEQUALITY": ("<=", "<"),
    "EVAL.KAP": ("none", "definition", "released"),
    "EVAL.PROTOCOL": ("resized", "original"),
    "EVAL.BY": ("image", "point"),
    "EVAL.AVERAGE": ("pair", "category"),
    "TRANSFER.COMBINE": ("confident", "vote"),
}

# ... or from the first to the second number.
RANGES = {
    (0, 2**32 - 1): ("SEED", "FEATURES.NOISE_SEED"),
    (0, 999): (
        *("TRAIN.TIMESTEP", "VAL.TIMESTEP", "TEST.TIMESTEP"),
        *("FEATURES.TIMESTEP", "LDM.FIND_TIMESTEP", "LDM.TIMESTEP"),
    ),
    (1, 8192): ("DATASET.IMAGE_SIZE", "METHOD.DINO_SIZE", "FEATURES.SIZE", "FEATURES.WINDOW", "FEATURES.STRIDE"),
    (1, 10**5): (
        *("TRAIN.ENSEMBLE", "VAL.ENSEMBLE", "TEST.ENSEMBLE", "TRAIN.BATCH_SIZE", "TRAIN.ACCUMULATION"),
        *("EVAL.BATCH_SIZE", "LDM.STEPS", "LDM.ROUNDS", "LDM.CROPS", "LDM.ROWS_AT_ONCE", "DSD.POOL"),
    ),
    (1, 10**9): ("TRAIN.EPOCHS", "TRAIN.SAVE_EVERY", "TRAIN.LOG_EVERY", "LDM.KEPT_CROPS"),
    (0, 10**9): (
        *("DATASET.PAIRS", "TRAIN.MAX_STEPS", "VAL.EVERY", "VAL.PAIRS", "VAL.PICTURES", "VAL.GENERATE"),
        *("TEST.PICTURES", "DSD.ROWS"),
    ),
    (1, 1024): ("POSE.GRID", "LDM.TOKENS", "DSD.RANK"),
    (0, 1024): ("VAL.DENSE", "DATASET.NUM_WORKERS", "LDM.TOKEN", "LDM.HEADS"),
    (1, 1000): ("DSD.TIMESTEPS", "GENERATE.STEPS"),
    (1, 100): ("GENERATE.GUIDANCE", "LDM.CROP_PERCENT"),
    (1, 255): ("LOSS.KERNEL_SIZE",),
    (1, 75): ("PROMPT.LENGTH",),
    (0, 99): ("METHOD.LAYER",),
    (-1, 999): ("METHOD.DINO_LAYER",),
    (4, 2**16): ("GEOAWARE.WIDTH",),
    (0, 1): ("DATASET.FEW_SHOT", "LDM.FLIP_PROB"),
    (-1, 1): ("TRANSFER.VISIBLE",),
    (0, 0.5): ("LDM.CROP_MARGIN",),
    (0, 0.99): ("GEOAWARE.DROPOUT",),
    (0.01, 0.99): ("TRAIN.RISE",),
    (0, 1e3): (
        *("METHOD.SD_WEIGHT", "METHOD.DINO_WEIGHT", "FEATURES.FREEU", "TRANSFER.MARGIN"),
        *("DSD.LAYER_WEIGHTS", "DSD.MARGIN", "DSD.WEIGHT_DECAY", "GEOAWARE.PROMPT_LR", "GEOAWARE.WEIGHT_DECAY"),
        *(f"GEOAWARE.{term}" for term in ("SPARSE", "DENSE", "NOISE", "DOUBLE", "SELF", "SINGLE")),
    ),
    (1e-12, 1e3): ("TRAIN.LR", "LDM.LR"),
    (1e-6, 1e6): (
        *("EVAL.BETA", "LOSS.BETA", "DSD.TEMPERATURE", "EVAL.ALPHAS", "EVAL.PICTURE_ALPHA", "TRAIN.LINEAR_LR_SCALE"),
        *("DSD.MAX_GRAD_NORM", "TRANSFER.RADIUS", "TRANSFER.OKS_SIGMA"),
    ),
    (0.01, 1e4): ("EVAL.SIGMA", "LOSS.SIGMA", "LDM.SIGMA"),
    (-1e4, 1e4): ("EVAL.WINDOW", "LOSS.WINDOW"),
}

RULES: dict[str, tuple] = CHOICES | {key: limits for limits, keys in RANGES.items() for key in keys}

# Entries of tables, each "module:table", which is imported for a value that is not the default's.
TABLES = {
    "DATASET.NAME": "dataset:BENCHMARKS",
    "METHOD.NAME": "model.method:METHODS",
    "PROMPT.KIND": "model.prompt.name:KINDS",
    "LOSS.NAME": "loss:LOSSES",
    "VAL.LOCALISER": "utils.localise:LOCALISERS",
    "EVAL.LOCALISERS": "utils.localise:LOCALISERS",
    "EVAL.PICTURE_LOCALISER": "utils.localise:LOCALISERS",
}
_SIZE = (lambda value: len(value) == 2, "two numbers (H, W)")
_EACH_ONCE = (lambda value: 0 < len(value) == len(set(value)), "one or more values, each once")
_GIVEN = (bool, "given")
_BELOW = (lambda value: ".." not in re.split(r"[/\\]", value), "a name below OUTPUT_ROOT/prompt")

# What else must hold of a value, and how it is said.
FORMS = {
    "OUTPUT_ROOT": _GIVEN,
    "DATASET.ROOT": _GIVEN,
    "DATASET.IMAGE_SIZE": _SIZE,
    "NETWORK.NAME": (
        lambda value: re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]{,63}", value),
        "a word for prompt names, of letters, digits, '.' and '-'",
    ),
    "NETWORK.FOLDER": _GIVEN,
    "METHOD.WEIGHTS": _BELOW,
    "TRAIN.START": _BELOW,
    "METHOD.DINO_SIZE": _SIZE,
    "POSE.MASKS": _GIVEN,
    "POSE.GRID": _SIZE,
    "DSD.LAYER_WEIGHTS": (lambda value: len(value) == 3 and sum(value) > 0, "three numbers, not all 0"),
    "FEATURES.TAPS": _EACH_ONCE,
    "FEATURES.SIZE": _SIZE,
    "FEATURES.FREEU": (lambda value: len(value) in (0, 4), "nothing or four factors b1, b2, s1, s2"),
    "GEOAWARE.WIDTH": (lambda value: value % 4 == 0, "a multiple of 4"),
    "LDM.LAYERS": _EACH_ONCE,
    "PROMPT.INIT": (
        lambda value: value in ("random", "empty") or value.startswith("text:"),
        "random, empty or text:<a sentence>",
    ),
    "LOSS.KERNEL_SIZE": (lambda value: value % 2, "odd"),
    "TRAIN.STEP_RULES": (lambda value: not value or _are_step_rules(value), 'like "1:1000,0.1:2000,0.01"'),
    "VAL.DENSE": (lambda value: value != 1, "0 or at least 2"),
    "EVAL.ALPHAS": _EACH_ONCE,
    "EVAL.LOCALISERS": _EACH_ONCE,
    "TRANSFER.VISIBLE": (lambda value: value == -1 or value >= 0, "0..1, or -1"),
}


def check_config(cfg: CN, training: bool) -> CN:
    """The config itself, or ConfigError with every problem; `training` also checks the prompt that is to be learned."""
    problems = [*_check_values(cfg), *_check_names(cfg)]
    if not problems:  # the rest takes values for what they should be
        problems += [*_check_device(cfg), *_check_method(cfg, training)]
        problems += _check_training(cfg) if training else _check_tested_prompt(cfg)
    if problems:
        raise ConfigError("the configuration cannot be used:\n" + "\n".join(f"  - {line}" for line in problems))
    return cfg


def get_value(cfg: CN, key: str) -> object:
    """The value of a dotted key."""
    for name in key.split("."):
        cfg = cfg[name]
    return cfg


def _check_values(cfg: CN) -> Iterator[str]:
    for key, rule in RULES.items():
        value = get_value(cfg, key)
        values = value if isinstance(value, tuple) else (value,)
        if key in CHOICES:
            wrong, what = [item for item in values if item not in rule], f"one of {', '.join(rule)}"
        else:  # nan is in no range
            wrong, what = [item for item in values if not rule[0] <= item <= rule[1]], f"in {rule[0]:g}..{rule[1]:g}"
        if wrong:
            yield f"{key} must be {what}; got {value!r}"
    for key, (holds, what) in FORMS.items():
        if not holds(value := get_value(cfg, key)):
            yield f"{key} must be {what}; got {value!r}"


def _check_names(cfg: CN) -> Iterator[str]:
    default = get_default_config()
    for key, place in TABLES.items():
        if (value := get_value(cfg, key)) == get_value(default, key):
            continue
        module, _, name = place.partition(":")
        table = getattr(importlib.import_module(module), name)
        if unknown := [item for item in ((value,) if isinstance(value, str) else value) if item not in table]:
            yield f"{key}: unknown {', '.join(unknown)}; known: {', '.join(table)}"


def _check_device(cfg: CN) -> Iterator[str]:
    """Devices that this machine lacks."""
    if cfg.DEVICE not in ("auto", "cpu"):
        try:
            resolve_device(cfg.DEVICE)
        except ConfigError as error:
            yield str(error)
        if ":" in cfg.DEVICE and int(os.environ.get("WORLD_SIZE", 1)) > 1:
            yield f"DEVICE {cfg.DEVICE} is one device, but several processes were launched; use cuda or auto"


def _check_method(cfg: CN, training: bool) -> Iterator[str]:
    """What the method needs, and what it cannot use."""
    entry = METHODS[cfg.METHOD.NAME]
    yield from _check_task(cfg, entry)
    if entry.takes_prompt or entry.runs_diffusion or "posterior" in entry.reads:
        yield from _check_network(cfg)
        yield from _check_unet(cfg, training)
    if training and not entry.learns:
        known = ", ".join(name for name, other in METHODS.items() if other.learns)
        yield f"METHOD.NAME {cfg.METHOD.NAME} has nothing to learn; {known} have"
    if cfg.PROMPT.TYPE not in ("text", "empty") and not (entry.takes_prompt and entry.learns):
        yield f"PROMPT.TYPE {cfg.PROMPT.TYPE}: METHOD.NAME {cfg.METHOD.NAME} takes no learned prompt"
    if entry.takes_prompt and not entry.adds_noise:
        for key in ("TRAIN.ENSEMBLE", "VAL.ENSEMBLE") if training else ("TEST.ENSEMBLE",):
            if (value := get_value(cfg, key)) != 1:
                yield f"{key} must be 1, got {value}: {cfg.METHOD.NAME} adds no noise, so all draws are alike"
    if "dino" in entry.reads:
        yield from _check_dino(cfg)
    if "layers" in entry.reads:
        yield from _check_layers(cfg)
    elif entry.takes_taps:
        yield from _check_taps(cfg, _find_facts(cfg)[0])
    if {"dino", "posterior"} <= set(entry.reads) and cfg.METHOD.SD_WEIGHT + cfg.METHOD.DINO_WEIGHT == 0:
        yield "METHOD.SD_WEIGHT and METHOD.DINO_WEIGHT must be not both 0"


def _check_task(cfg: CN, entry) -> Iterator[str]:
    """A method answers the questions of one kind of benchmark."""
    from dataset import BENCHMARKS

    if entry.task != (task := BENCHMARKS[cfg.DATASET.NAME].task):
        known = ", ".join(name for name, other in METHODS.items() if other.task == task)
        name = cfg.DATASET.NAME
        yield f"METHOD.NAME {cfg.METHOD.NAME} is for {entry.task}, but DATASET.NAME {name} is for {task}: {known}"


def _check_dino(cfg: CN) -> Iterator[str]:
    """What the method's DINOv2 rules out; a hub id that is not on disk yet is checked after its download."""
    section, folder = cfg.METHOD, resolve_network(cfg.METHOD.DINO_FOLDER)
    try:
        facts = dino_facts(folder, init=cfg.NETWORK.INIT, architecture=HUB_IDS.get(folder, "dinov2-base"))
    except ValueError as error:  # a network of another kind, or a config file that is no JSON
        yield f"METHOD.DINO_FOLDER: {error}"
        return
    if facts is None:
        if not is_hub_id(folder):
            yield f"METHOD.DINO_FOLDER {section.DINO_FOLDER}: not a transformers folder with DINOv2, and no hub id"
        return
    if facts.n_layers <= section.DINO_LAYER:
        yield f"METHOD.DINO_LAYER {section.DINO_LAYER} does not exist: blocks are 0..{facts.n_layers - 1}, or -1"
    yield from _check_size("METHOD.DINO_SIZE", section.DINO_SIZE, facts.patch_size, "this DINOv2")


def _check_layers(cfg: CN) -> Iterator[str]:
    """What Stable Diffusion's own files, its windows and the captioner rule out for the maps of its layers."""
    section = cfg.FEATURES
    yield from _check_unet(cfg, training=False)
    facts, problems = _find_facts(cfg)
    yield from problems
    if facts is None:
        return
    sizes = {"SIZE": section.SIZE, "WINDOW": (section.WINDOW,) * 2, "STRIDE": (section.STRIDE,) * 2}
    for key, size in sizes.items():
        yield from _check_size(f"FEATURES.{key}", size, facts.image_divisor, "this UNet")
    if min(section.SIZE) < section.WINDOW:
        yield f"FEATURES.WINDOW {section.WINDOW} must fit into FEATURES.SIZE {section.SIZE}"
    if section.STRIDE > section.WINDOW:
        yield f"FEATURES.STRIDE {section.STRIDE} must be at most FEATURES.WINDOW {section.WINDOW}: pixels are left out"
    yield from _check_taps(cfg, facts)
    if section.CAPTIONER:
        if not os.path.isfile(resolve_path(section.CAPTIONER)):
            yield (
                f"FEATURES.CAPTIONER {section.CAPTIONER}: no such file; it is ODISE's checkpoint (docs/geoaware.md), "
                'or what script/convert_captioner.py makes of it; "" takes the prompt FEATURES.PROMPT instead'
            )
        if cfg.NETWORK.INIT == "random":
            yield "FEATURES.CAPTIONER needs NETWORK.INIT pretrained"


def _check_taps(cfg: CN, facts) -> Iterator[str]:
    """Names of layers that this UNet cannot have; facts: its sizes, None if they are not known yet."""
    for tap in cfg.FEATURES.TAPS if facts else ():
        try:
            facts.tap_shape((facts.image_divisor,) * 2, tap)
        except ValueError as error:
            yield f"FEATURES.TAPS {tap}: {error}"


def _check_size(key: str, size: tuple[int, int], divisor: int, who: str) -> Iterator[str]:
    if any(side % divisor for side in size):
        height, width = (max(divisor, round(side / divisor) * divisor) for side in size)
        yield f"{key} {size}: {who} takes multiples of {divisor} px; the nearest is ({height}, {width})"


def _find_facts(cfg: CN):
    """The network's sizes, None if they are not known yet, and what rules it out."""
    folder = resolve_network(cfg.NETWORK.FOLDER)
    try:
        facts = network_facts(folder, init=cfg.NETWORK.INIT, architecture=cfg.NETWORK.ARCHITECTURE)
    except ValueError as error:  # an unknown architecture, or a config file that is no JSON
        return None, [f"NETWORK: {error}"]
    if facts is None and not is_hub_id(folder):
        return None, [f"NETWORK.FOLDER {cfg.NETWORK.FOLDER}: not a diffusers folder (vae, unet, ...), and no hub id"]
    return facts, list(_check_backbone_name(cfg, facts)) if facts else []


def _check_network(cfg: CN) -> Iterator[str]:
    """What the network's own config files rule out. A hub id that is not on disk yet is checked after its download."""
    facts, problems = _find_facts(cfg)
    yield from problems
    if facts is None:
        return
    if facts.n_up_blocks <= cfg.METHOD.LAYER:
        yield (
            f"METHOD.LAYER {cfg.METHOD.LAYER} does not exist in {cfg.NETWORK.FOLDER}: "
            f"its UNet has up_blocks 0..{facts.n_up_blocks - 1}"
        )
    yield from _check_size("DATASET.IMAGE_SIZE", cfg.DATASET.IMAGE_SIZE, facts.image_divisor, "this UNet")


def _check_backbone_name(cfg: CN, facts) -> Iterator[str]:
    """A released backbone's name must not stand for another network: prompts carry the name."""
    if cfg.NETWORK.NAME not in STABLE_DIFFUSION:
        return
    named = network_facts("", init="random", architecture=cfg.NETWORK.NAME)
    for what in ("cross_attention_dim", "prediction_type", "up_channels"):
        want, found = getattr(named, what), getattr(facts, what)
        if want != found:
            yield (
                f"NETWORK.NAME {cfg.NETWORK.NAME} has {what} {want}, but the network in NETWORK.FOLDER "
                f"{cfg.NETWORK.FOLDER} has {found}; set both keys to the same backbone"
            )


def _check_unet(cfg: CN, training: bool) -> Iterator[str]:
    """A UNet in place of the network's own: that it is there, fits, and does not go by a released name in training."""
    if not (unet := cfg.NETWORK.UNET):
        return
    if cfg.NETWORK.INIT == "random":
        yield "NETWORK.UNET needs NETWORK.INIT pretrained"
    if training and cfg.NETWORK.NAME in STABLE_DIFFUSION:
        yield (
            f"NETWORK.NAME {cfg.NETWORK.NAME} stands for the released UNet, but NETWORK.UNET replaces it: prompts "
            f"carry the name, so choose another, such as {cfg.NETWORK.NAME}-{cfg.METHOD.NAME.replace('_', '-')}"
        )
    path = find_unet(resolve_network(unet))
    if path is None:
        if not is_hub_id(unet) and split_hub_file(unet) is None:
            yield (
                f"NETWORK.UNET {unet}: no UNet folder (config.json and safetensors), no .safetensors file, no hub id "
                "and no file of one (owner/name/file.safetensors)"
            )
        return
    if path.is_file() and path.suffix != ".safetensors":
        yield f"NETWORK.UNET {unet}: only .safetensors files are read"
    facts = network_facts(resolve_network(cfg.NETWORK.FOLDER))
    if path.is_dir() and not (path / "config.json").is_file():
        yield f"NETWORK.UNET {unet}: the folder lacks config.json"
    elif path.is_dir() and facts and (wrong := differing_unet_entries(read_config(path / "config.json"), facts)):
        yield f"NETWORK.UNET {unet} does not fit NETWORK.FOLDER {cfg.NETWORK.FOLDER}: {'; '.join(wrong)}"


def _check_training(cfg: CN) -> Iterator[str]:
    if cfg.PROMPT.KIND == "CPM":
        try:
            parse_cpm(cfg.PROMPT.CPM)
        except ValueError as error:
            yield f"PROMPT.CPM: {error}"
        if cfg.PROMPT.INIT != "random":
            yield f"PROMPT.INIT {cfg.PROMPT.INIT!r} is for Single and Class; CPM starts random"
    if cfg.TRAIN.START:
        from model.method.base import WEIGHTS_FILE

        if WEIGHTS_FILE not in find_method(cfg.METHOD.NAME).FILES:
            yield f"TRAIN.START is not for METHOD.NAME {cfg.METHOD.NAME}, which learns a prompt"
    if (cfg.TRAIN.SCHEDULER == "piecewise_constant") != bool(cfg.TRAIN.STEP_RULES):
        yield "TRAIN.STEP_RULES and TRAIN.SCHEDULER piecewise_constant go together; set both or neither"
    if cfg.VAL.LOCALISER not in cfg.EVAL.LOCALISERS:
        yield f"VAL.LOCALISER {cfg.VAL.LOCALISER!r} must be among EVAL.LOCALISERS {cfg.EVAL.LOCALISERS}"
    if cfg.VAL.ALPHA not in cfg.EVAL.ALPHAS:
        yield f"VAL.ALPHA {cfg.VAL.ALPHA} must be among EVAL.ALPHAS {cfg.EVAL.ALPHAS}"


def _are_step_rules(text: str) -> bool:
    """Factors up to 1000, all but the last with the step that ends it, later and later."""
    number = r"\d{1,3}(?:\.\d{1,9})?"
    if not re.fullmatch(rf"({number}:\d{{1,9}},)+{number}", text, re.ASCII):
        return False
    ends = [int(end) for end in re.findall(r":(\d+)", text)]
    return all(a < b for a, b in zip(ends, ends[1:], strict=False))


def _check_tested_prompt(cfg: CN) -> Iterator[str]:
    if cfg.PROMPT.TYPE in ("text", "empty"):
        if cfg.PROMPT.TYPE == "text" and "{category}" not in cfg.PROMPT.TEMPLATE:
            yield f"PROMPT.TEMPLATE must contain {{category}}; got {cfg.PROMPT.TEMPLATE!r}"
        return
    try:
        name = parse_prompt_name(cfg.PROMPT.TYPE)
    except ValueError as error:
        yield f"PROMPT.TYPE: {error}"
        return
    if name.backbone != cfg.NETWORK.NAME:
        yield (
            f"PROMPT.TYPE {cfg.PROMPT.TYPE} was trained for the backbone {name.backbone}, but NETWORK.NAME is "
            f"{cfg.NETWORK.NAME}; choose a prompt of {cfg.NETWORK.NAME}, or a config file for {name.backbone}"
        )
