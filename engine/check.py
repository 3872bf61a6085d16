"""What a config may say: choices, ranges and combinations, checked before anything slow starts."""

import importlib.util
import math
import os
import re
from collections.abc import Iterator

from yacs.config import CfgNode as CN

from config import ConfigError, resolve_network

CHOICES = {
    "PRECISION": ("auto", "fp32", "fp16", "bf16"),
    "NETWORK.INIT": ("pretrained", "random"),
    "NETWORK.ATTENTION": ("sdpa", "xformers"),
    "METHOD.POSTERIOR": ("sample", "mode"),
    "METHOD.DINO_INPUT": ("normalised", "release"),
    "PROMPT.KIND": ("Single", "Class", "CPM"),
    "PROMPT.SPACE": ("TokenEmbeds", "HiddenState"),
    "TRAIN.SCHEDULER": ("constant", "linear", "piecewise_constant"),
    "EVAL.PROTOCOL": ("resized", "original"),
    "EVAL.BY": ("image", "point"),
    "EVAL.AVERAGE": ("pair", "category"),
}

# (smallest, largest) value allowed; None = no limit
RANGES = {
    "SEED": (0, 2**32 - 1),
    "DATASET.NUM_WORKERS": (0, None),
    "METHOD.LAYER": (0, None),
    "METHOD.DINO_LAYER": (-1, None),
    "METHOD.SD_WEIGHT": (0, None),
    "METHOD.DINO_WEIGHT": (0, None),
    "LOSS.KERNEL_SIZE": (1, None),
    "TRAIN.TIMESTEP": (0, 999),
    "TRAIN.ENSEMBLE": (1, None),
    "TRAIN.BATCH_SIZE": (1, None),
    "TRAIN.ACCUMULATION": (1, None),
    "TRAIN.EPOCHS": (1, None),
    "TRAIN.MAX_STEPS": (0, None),
    "TRAIN.SAVE_EVERY": (1, None),
    "TRAIN.LOG_EVERY": (1, None),
    "VAL.TIMESTEP": (0, 999),
    "VAL.ENSEMBLE": (1, None),
    "VAL.PICTURES": (0, None),
    "VAL.DENSE": (0, 1024),
    "VAL.GENERATE": (0, None),
    "GENERATE.STEPS": (1, 1000),
    "GENERATE.GUIDANCE": (1, 100),
    "TEST.TIMESTEP": (0, 999),
    "TEST.ENSEMBLE": (1, None),
    "TEST.PICTURES": (0, None),
    "EVAL.BATCH_SIZE": (1, None),
    "EVAL.MAX_ROWS": (0, None),
    "EVAL.FEATURE_GIB": (0.0, None),
    "PROMPT.LENGTH": (1, 75),
}

POSITIVE = (
    "LOSS.BETA",
    "LOSS.SIGMA",
    "TRAIN.LR",
    "TRAIN.LINEAR_LR_SCALE",
    "EVAL.BETA",
    "EVAL.SIGMA",
    "EVAL.PICTURE_ALPHA",
)


def check_config(cfg: CN, training: bool) -> None:
    """Raise ConfigError with every problem found; `training` also checks the prompt that is to be learned."""
    problems = [
        *_check_values(cfg),
        *_check_names(cfg),
        *_check_device(cfg),
        *_check_evaluation(cfg),
        *_check_matcher(cfg, training),
    ]
    problems += _check_training(cfg) if training else _check_tested_prompt(cfg)
    if problems:
        raise ConfigError("the configuration cannot be used:\n" + "\n".join(f"  - {line}" for line in problems))


def get_value(cfg: CN, key: str) -> object:
    """The value of a dotted key."""
    for name in key.split("."):
        cfg = cfg[name]
    return cfg


def _check_values(cfg: CN) -> Iterator[str]:
    from model.backbone.execution import COMPILE_MODES, MEMORY_FORMATS

    executed = {"NETWORK.MEMORY_FORMAT": MEMORY_FORMATS, "NETWORK.COMPILE": COMPILE_MODES}
    for key, choices in (CHOICES | executed).items():
        if (value := get_value(cfg, key)) not in choices:
            yield f"{key} must be one of {', '.join(choices)}; got {value!r}"
    for key, (low, high) in RANGES.items():
        value = get_value(cfg, key)
        if not (value >= low and (high is None or value <= high)):  # nan is in no range
            yield f"{key} must be {f'at least {low}' if high is None else f'in {low}..{high}'}; got {value}"
    for key in POSITIVE:
        value = get_value(cfg, key)
        if not (math.isfinite(value) and value > 0):
            yield f"{key} must be a positive number; got {value}"
    if cfg.LOSS.KERNEL_SIZE % 2 == 0:
        yield f"LOSS.KERNEL_SIZE must be odd; got {cfg.LOSS.KERNEL_SIZE}"
    for key in ("DATASET.IMAGE_SIZE", "METHOD.DINO_SIZE"):
        value = get_value(cfg, key)
        if len(value) != 2 or min(value, default=0) < 1:
            yield f"{key} must be two positive numbers (H, W); got {value}"


def _check_names(cfg: CN) -> Iterator[str]:
    """Entries of the tables of builders."""
    from dataset import BENCHMARKS
    from loss import LOSSES
    from model.method import METHODS
    from utils.localise import LOCALISERS

    named = {"DATASET.NAME": BENCHMARKS, "LOSS.NAME": LOSSES, "METHOD.NAME": METHODS}
    named |= {"EVAL.LOCALISERS": LOCALISERS, "EVAL.PICTURE_LOCALISER": LOCALISERS, "VAL.LOCALISER": LOCALISERS}
    for key, table in named.items():
        value = get_value(cfg, key)
        if unknown := [name for name in ((value,) if isinstance(value, str) else value) if name not in table]:
            yield f"{key}: unknown {', '.join(unknown)}; known: {', '.join(table)}"


def _check_evaluation(cfg: CN) -> Iterator[str]:
    if not cfg.EVAL.ALPHAS or not all(math.isfinite(alpha) and alpha > 0 for alpha in cfg.EVAL.ALPHAS):
        yield f"EVAL.ALPHAS must be positive numbers; got {cfg.EVAL.ALPHAS}"
    for key in ("EVAL.ALPHAS", "EVAL.LOCALISERS"):
        if len(set(get_value(cfg, key))) < len(get_value(cfg, key)):
            yield f"{key} lists a value twice: {get_value(cfg, key)}"


def _check_matcher(cfg: CN, training: bool) -> Iterator[str]:
    """What the matcher needs, and what it cannot use."""
    from model.method import METHODS

    if (entry := METHODS.get(cfg.METHOD.NAME)) is None:
        return
    if entry.parts:
        yield from _check_network(cfg)
        yield from _check_unet(cfg, training)
    elif training:
        known = ", ".join(name for name, other in METHODS.items() if other.takes_prompt)
        yield f"METHOD.NAME {cfg.METHOD.NAME} takes no prompt, so there is nothing to learn; {known} take one"
    elif cfg.PROMPT.TYPE not in ("text", "empty"):
        yield f"PROMPT.TYPE {cfg.PROMPT.TYPE}: METHOD.NAME {cfg.METHOD.NAME} takes no prompt; leave PROMPT.TYPE out"
    if entry.parts and "ensemble" not in entry.settings:
        for key in ("TRAIN.ENSEMBLE", "VAL.ENSEMBLE") if training else ("TEST.ENSEMBLE",):
            if (value := get_value(cfg, key)) != 1:
                yield f"{key} must be 1, got {value}: {cfg.METHOD.NAME} adds no noise, so all draws are alike"
    if "dino" in entry.caches:
        yield from _check_dino(cfg)
    if "dino_weight" in entry.settings and not (0 < (cfg.METHOD.SD_WEIGHT + cfg.METHOD.DINO_WEIGHT) < math.inf):
        yield "METHOD.SD_WEIGHT and METHOD.DINO_WEIGHT must be finite and not both 0"


def _check_dino(cfg: CN) -> Iterator[str]:
    """What the matcher's DINOv2 rules out; a hub id that is not on disk yet is checked after its download."""
    from model.backbone.architecture import HUB_IDS
    from model.backbone.facts import dino_facts, is_hub_id

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
    patch, size = facts.patch_size, section.DINO_SIZE
    if len(size) == 2 and any(side % patch for side in size):
        height, width = (max(patch, round(side / patch) * patch) for side in size)
        yield f"METHOD.DINO_SIZE {size}: this DINOv2 takes multiples of {patch} px; the nearest is ({height}, {width})"


def _check_unet(cfg: CN, training: bool) -> Iterator[str]:
    """A UNet in place of the network's own: that it is there, fits, and does not go by a released name in training."""
    from model.backbone.architecture import STABLE_DIFFUSION
    from model.backbone.facts import (
        differing_unet_entries,
        find_unet,
        is_hub_id,
        network_facts,
        read_config,
        split_hub_file,
    )

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


def _check_network(cfg: CN) -> Iterator[str]:
    """What the network's own config files rule out. A hub id that is not on disk yet is checked after its download."""
    from model.backbone.facts import is_hub_id, network_facts

    folder = resolve_network(cfg.NETWORK.FOLDER)
    try:
        facts = network_facts(folder, init=cfg.NETWORK.INIT, architecture=cfg.NETWORK.ARCHITECTURE)
    except ValueError as error:  # an unknown architecture, or a config file that is no JSON
        yield f"NETWORK: {error}"
        return
    if facts is None:
        if not is_hub_id(folder):
            yield f"NETWORK.FOLDER {cfg.NETWORK.FOLDER}: not a diffusers folder (vae, unet, ...), and no hub id"
        return
    yield from _check_backbone_name(cfg, facts)
    if facts.n_up_blocks <= cfg.METHOD.LAYER:
        yield (
            f"METHOD.LAYER {cfg.METHOD.LAYER} does not exist in {cfg.NETWORK.FOLDER}: "
            f"its UNet has up_blocks 0..{facts.n_up_blocks - 1}"
        )
    divisor = facts.image_divisor
    if len(cfg.DATASET.IMAGE_SIZE) == 2 and any(side % divisor for side in cfg.DATASET.IMAGE_SIZE):
        height, width = (max(divisor, round(side / divisor) * divisor) for side in cfg.DATASET.IMAGE_SIZE)
        yield (
            f"DATASET.IMAGE_SIZE {cfg.DATASET.IMAGE_SIZE}: this UNet takes multiples of {divisor} px; "
            f"the nearest is ({height}, {width})"
        )


def _check_backbone_name(cfg: CN, facts) -> Iterator[str]:
    """A released backbone's name must not stand for another network: prompts carry the name."""
    from model.backbone.architecture import STABLE_DIFFUSION
    from model.backbone.facts import network_facts

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


def _check_device(cfg: CN) -> Iterator[str]:
    """Devices, attention kernels and packages that this machine lacks."""
    import torch

    if cfg.DEVICE != "auto":
        try:
            kind = torch.device(cfg.DEVICE).type
        except RuntimeError:
            yield f'DEVICE must be "auto" or a torch device such as "cpu" or "cuda:1"; got {cfg.DEVICE!r}'
            return
        if kind == "cuda" and not torch.cuda.is_available():
            yield f"DEVICE {cfg.DEVICE}: this machine, or this installation of PyTorch, has no GPU; use auto"
        if kind == "cuda" and cfg.DEVICE != "cuda" and int(os.environ.get("WORLD_SIZE", 1)) > 1:
            yield f"DEVICE {cfg.DEVICE} is one GPU, but several processes were launched; use cuda or auto"
    if cfg.NETWORK.ATTENTION == "xformers" and importlib.util.find_spec("xformers") is None:
        yield "NETWORK.ATTENTION xformers needs the package xformers; install it, or use sdpa"


def _check_training(cfg: CN) -> Iterator[str]:
    from model.prompt.name import format_prompt, parse_cpm

    if cfg.PROMPT.KIND == "CPM":
        try:
            parse_cpm(cfg.PROMPT.CPM)
        except ValueError as error:
            yield f"PROMPT.CPM: {error}"
    if cfg.PROMPT.KIND == "CPM" and cfg.PROMPT.INIT != "random":
        yield f"PROMPT.INIT {cfg.PROMPT.INIT!r} is for Single and Class; CPM starts random"
    if cfg.PROMPT.INIT not in ("random", "empty") and not cfg.PROMPT.INIT.startswith("text:"):
        yield f"PROMPT.INIT must be random, empty or text:<a sentence>; got {cfg.PROMPT.INIT!r}"
    if (cfg.TRAIN.SCHEDULER == "piecewise_constant") != bool(cfg.TRAIN.STEP_RULES):
        yield "TRAIN.STEP_RULES and TRAIN.SCHEDULER piecewise_constant go together; set both or neither"
    if cfg.TRAIN.STEP_RULES and not re.fullmatch(r"([\d.]+:\d+,)+[\d.]+", cfg.TRAIN.STEP_RULES):
        yield f'TRAIN.STEP_RULES must look like "1:1000,0.1:2000,0.01"; got {cfg.TRAIN.STEP_RULES!r}'
    if cfg.VAL.DENSE == 1:
        yield "VAL.DENSE must be 0 or at least 2; got 1"
    if cfg.VAL.LOCALISER not in cfg.EVAL.LOCALISERS:
        yield f"VAL.LOCALISER {cfg.VAL.LOCALISER!r} must be among EVAL.LOCALISERS {cfg.EVAL.LOCALISERS}"
    if cfg.VAL.ALPHA not in cfg.EVAL.ALPHAS:
        yield f"VAL.ALPHA {cfg.VAL.ALPHA} must be among EVAL.ALPHAS {cfg.EVAL.ALPHAS}"
    try:
        format_prompt("Single", cfg.DATASET.NAME, cfg.NETWORK.NAME, "HiddenState")
    except ValueError as error:
        yield f"NETWORK.NAME: {error}"


def _check_tested_prompt(cfg: CN) -> Iterator[str]:
    from model.prompt.name import parse_prompt_name

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
