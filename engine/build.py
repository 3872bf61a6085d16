"""From the config to objects: the only place, with report and run, where library code meets config keys."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

import loss
from config import ConfigError, resolve_path
from dataset import BENCHMARKS, DatasetError, MissingDataError, build_benchmark, category_word, fill_command
from dataset.error import choose
from dataset.pair_dataset import PairDataset
from engine import process as runtime
from engine.precompute import build_caches, find_caches
from model.backbone.device import resolve_device, resolve_dtype
from model.backbone.execution import resolve_memory_format, speed_up
from model.backbone.facts import get_condition
from model.backbone.generate import Generator
from model.backbone.load import load_stable_diffusion
from model.backbone.text import PromptEncoder
from model.error import NetworkError, NetworkNotFoundError
from model.method import METHODS, build_method
from model.prompt import build_prompt
from model.prompt.base import Prompt
from model.prompt.name import PromptName, format_prompt, parse_prompt_name
from model.prompt.store import load_prompt, read_prompt
from model.prompt.text_prompt import OpenTextPrompt
from model.source import condition_shape, find_stable_diffusion, find_unet, fingerprint_stable_diffusion
from utils.frame import build_frame


def build_accelerator(cfg, accumulation: int = 1) -> Accelerator:
    """The process, or processes, as launched, on the configured device."""
    try:
        find_output(cfg).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=find_output(cfg)).close()
    except OSError as error:
        raise ConfigError(f"OUTPUT_ROOT {find_output(cfg)} cannot be written ({error.strerror})") from error
    dtype = resolve_dtype(cfg.PRECISION, resolve_device(cfg.DEVICE))
    return runtime.build_accelerator(cfg.DEVICE, dtype, accumulation)


def find_folder(cfg) -> Path:
    """The folder of the configured benchmark."""
    known = choose(cfg.DATASET.NAME, BENCHMARKS, "data set (DATASET.NAME)")
    return Path(resolve_path(cfg.DATASET.ROOT)) / BENCHMARKS[known].FOLDER


def find_output(cfg) -> Path:
    """The folder below which everything is written."""
    return Path(resolve_path(cfg.OUTPUT_ROOT))


def find_datasets(cfg) -> list[str]:
    """Names of the benchmarks whose folder is in DATASET.ROOT; MissingDataError if there is none."""
    root = Path(resolve_path(cfg.DATASET.ROOT))
    names = [name for name, benchmark in BENCHMARKS.items() if (root / benchmark.FOLDER).is_dir()]
    if not names:
        command = fill_command(cfg.DATASET.PREPARE, cfg.DATASET.NAME, root)
        folders = ", ".join(benchmark.FOLDER for benchmark in BENCHMARKS.values())
        raise MissingDataError(f"{root} (DATASET.ROOT) holds none of {folders}; `{command}` makes one")
    return names


def build_pairs(cfg, split: str) -> PairDataset:
    """The pairs of a split, still without caches."""
    try:
        benchmark = build_benchmark(
            cfg.DATASET.NAME,
            find_folder(cfg),
            split,
            cfg.DATASET.CATEGORY,
            index_root=find_caches(cfg) / "index",
            prepare=cfg.DATASET.PREPARE,
        )
    except (DatasetError, MissingDataError):
        raise
    except ValueError as error:  # an unknown name
        raise ConfigError(str(error)) from error
    return PairDataset(benchmark, build_frame(cfg.DATASET.FRAME, cfg.DATASET.IMAGE_SIZE))


def build_all_splits(cfg) -> list[PairDataset]:
    """The pairs of every split that the configured benchmark has."""
    return [build_pairs(cfg, split) for split in BENCHMARKS[cfg.DATASET.NAME].SPLITS]


def build_prompt_name(cfg) -> PromptName:
    """The name of the prompt that the config trains."""
    section = cfg.PROMPT
    variants = {"TokenEmbeds": f"TokenEmbeds{section.LENGTH}", "HiddenState": "HiddenState"}
    variant = section.CPM if section.KIND == "CPM" else variants[section.SPACE]
    return format_prompt(section.KIND, cfg.DATASET.NAME, cfg.NETWORK.NAME, variant)


def build_new_prompt(cfg, categories: Sequence[str]) -> Prompt:
    """The prompt to be trained, at its start."""
    return _build_fresh_prompt(cfg, build_prompt_name(cfg), categories)


def _build_fresh_prompt(cfg, name: PromptName, categories: Sequence[str]) -> Prompt:
    try:
        return _build_prompt(cfg, name, categories)
    except (NetworkError, NetworkNotFoundError):
        raise
    except ValueError as error:  # such as a PROMPT.INIT with more words than PROMPT.LENGTH
        raise ConfigError(f"PROMPT: {error}") from error


def build_tested_prompt(cfg, categories: Sequence[str], folder: str | Path | None = None) -> Prompt | None:
    """The prompt that PROMPT.TYPE names: in words, or learned and read from `folder` or from below OUTPUT_ROOT.

    None if the matcher takes none.
    """
    if not METHODS[cfg.METHOD.NAME].takes_prompt:
        return None
    name = parse_prompt_name(cfg.PROMPT.TYPE)
    if name.method in ("text", "empty"):
        return _build_fresh_prompt(cfg, name, categories)
    folder = folder or find_output(cfg) / "prompt" / cfg.PROMPT.TYPE
    read_prompt(folder, str(name))  # damaged or misnamed files are told before the text model is loaded
    return load_prompt(
        folder,
        text=load_text(cfg),
        backbone=cfg.NETWORK.NAME,
        categories=categories,
        condition_shape=_condition_shape(cfg, name),
        fingerprint=fingerprint_stable_diffusion(cfg, ("unet", "text_encoder")),
        name=str(name),
    )


def build_open_prompt(cfg, folder: str | Path | None = None) -> Prompt | None:
    """As `build_tested_prompt`, for images of no data set: the text prompt takes any category, or none."""
    if cfg.PROMPT.TYPE == "text" and METHODS[cfg.METHOD.NAME].takes_prompt:
        return OpenTextPrompt(cfg.PROMPT.TEMPLATE, cfg.PROMPT.WITHOUT_CATEGORY, load_text(cfg), category_word)
    return build_tested_prompt(cfg, (), folder)


def build_trainee(cfg, prompt: Prompt, device: torch.device) -> nn.Module:
    """The matcher in the setting of training, for a prompt on the same device."""
    return _build_method(cfg, prompt, cfg.TRAIN.TIMESTEP, cfg.TRAIN.ENSEMBLE, device)


def build_validator(cfg, matcher: nn.Module) -> nn.Module:
    """The same networks and prompt in the setting of validation."""
    return matcher.at(cfg.VAL.TIMESTEP, cfg.VAL.ENSEMBLE)


def build_tester(cfg, prompt: Prompt | None, device: torch.device) -> nn.Module:
    """The matcher in the setting of the test."""
    return _build_method(cfg, prompt, cfg.TEST.TIMESTEP, cfg.TEST.ENSEMBLE, device)


def build_test(
    cfg, choose_pairs: Callable[[PairDataset], Sequence[int]] | None = None
) -> tuple[Accelerator, PairDataset, nn.Module]:
    """What a test of the configured matcher and prompt needs: the process, the pairs with their caches, the matcher.

    choose_pairs: positions of the pairs to keep, in this order; None keeps all.
    """
    accelerator, pairs = build_accelerator(cfg), build_pairs(cfg, cfg.TEST.SPLIT)
    pairs = pairs if choose_pairs is None else pairs.select(choose_pairs(pairs))
    prompt = build_tested_prompt(cfg, pairs.benchmark.categories)
    build_caches(cfg, (pairs,), prompt.condition if prompt else None, accelerator)
    return accelerator, pairs, build_tester(cfg, prompt, accelerator.device)


def build_generator(cfg, device: torch.device) -> Generator:
    """Stable Diffusion as it makes images, with all its parts."""
    networks = load_stable_diffusion(
        dtype=resolve_dtype(cfg.PRECISION, device),
        device=device,
        attention=cfg.NETWORK.ATTENTION,
        seed=cfg.SEED,
        **find_stable_diffusion(cfg),
    )
    return Generator(networks, cfg.GENERATE.STEPS, cfg.GENERATE.GUIDANCE)


def build_loss(cfg) -> nn.Module:
    """The training objective; (B,) losses."""
    section = cfg.LOSS
    return loss.build_loss(section.NAME, beta=section.BETA, kernel_size=section.KERNEL_SIZE, sigma=section.SIGMA)


def describe_prompt(cfg) -> dict:
    """What a saved prompt says of its training, beside what it knows itself."""
    described = {
        "network": cfg.NETWORK.FOLDER,
        "network_fingerprint": fingerprint_stable_diffusion(cfg, ("unet", "text_encoder")),
        "init": cfg.PROMPT.INIT,
        "matcher": cfg.METHOD.NAME,
        "layer": cfg.METHOD.LAYER,
        "train_timestep": cfg.TRAIN.TIMESTEP,
    }
    if condition := build_prompt_name(cfg).condition:
        described["condition_network"] = cfg.CONDITION[f"{get_condition(condition).network}_FOLDER"]
    return described


def load_text(cfg) -> PromptEncoder:
    """The text transformer on the CPU in float32: what prompts start from."""
    networks = load_stable_diffusion(parts=("text_encoder", "tokenizer"), seed=cfg.SEED, **find_stable_diffusion(cfg))
    return PromptEncoder(networks.text_encoder, networks.tokenizer)


def _build_prompt(cfg, name: PromptName, categories: Sequence[str]) -> Prompt:
    return build_prompt(
        name,
        load_text(cfg),
        categories=categories,
        condition_shape=_condition_shape(cfg, name),
        init=cfg.PROMPT.INIT,
        seed=cfg.SEED,
        template=cfg.PROMPT.TEMPLATE,
        category_words=category_word,
    )


def _condition_shape(cfg, name: PromptName) -> tuple[int, int] | None:
    return condition_shape(cfg, name.condition) if name.condition else None


def _build_method(cfg, prompt: Prompt | None, timestep: int, ensemble: int, device: torch.device) -> nn.Module:
    entry = METHODS[cfg.METHOD.NAME]
    settings = {
        "layer": cfg.METHOD.LAYER,
        "timestep": timestep,
        "ensemble": ensemble,
        "posterior": cfg.METHOD.POSTERIOR,
        "max_rows": cfg.EVAL.MAX_ROWS or None,
        "recompute": cfg.NETWORK.RECOMPUTE,
        "sd_weight": cfg.METHOD.SD_WEIGHT,
        "dino_weight": cfg.METHOD.DINO_WEIGHT,
    }
    settings = {name: settings[name] for name in entry.settings}
    if not entry.takes_prompt:
        return build_method(cfg.METHOD.NAME, None, None, **settings)
    dtype = resolve_dtype(cfg.PRECISION, device)
    networks = load_stable_diffusion(
        parts=entry.parts,
        dtype=dtype,
        device=device,
        attention=cfg.NETWORK.ATTENTION,
        seed=cfg.SEED,
        **find_stable_diffusion(cfg),
        **find_unet(cfg),
    )
    speed_up(networks.unet, resolve_memory_format(cfg.NETWORK.MEMORY_FORMAT, device, dtype), cfg.NETWORK.COMPILE)
    return build_method(cfg.METHOD.NAME, networks, prompt.to(device), **settings)
