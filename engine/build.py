"""From the config to objects."""

import inspect
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs
from torch import nn
from torch.utils.data import Dataset

from config import ConfigError, resolve_path
from dataset import BENCHMARKS, DatasetError, MissingDataError, build_benchmark, fill_command
from dataset.error import choose
from dataset.pair_dataset import PairDataset
from engine.align import build_alignment
from engine.identity import require_training
from engine.precompute import build_caches, find_caches
from engine.task import find_task
from loss import LOSSES
from model.backbone.device import resolve_device, resolve_dtype
from model.backbone.generate import Generator
from model.backbone.load import load_stable_diffusion
from model.method import METHODS, find_method
from model.method.base import Method
from model.source import MIRRORED, find_stable_diffusion
from utils.pck import TOTAL


def build_accelerator(cfg, accumulation: int = 1) -> Accelerator:
    """The process, or processes, as launched, on the configured device.

    fp16 brings a gradient scaler on a GPU, but no autocast: what learns is in fp32, frozen networks are cast by their
    loader.
    """
    try:
        find_output(cfg).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=find_output(cfg)).close()
    except OSError as error:
        raise ConfigError(f"OUTPUT_ROOT {find_output(cfg)} cannot be written ({error.strerror})") from error
    if cfg.DEVICE not in ("auto", "cpu", "cuda"):  # with those, each process finds its own
        os.environ["ACCELERATE_TORCH_DEVICE"] = cfg.DEVICE
    device = resolve_device(cfg.DEVICE)
    scaled = resolve_dtype(cfg.PRECISION, device) == torch.float16 and device.type != "cpu"
    return Accelerator(
        cpu=cfg.DEVICE == "cpu",
        mixed_precision="fp16" if scaled else "no",
        gradient_accumulation_steps=accumulation,
        kwargs_handlers=[AutocastKwargs(enabled=False)],
    )


def find_folder(cfg) -> Path:
    """The folder of the configured benchmark."""
    known = choose(cfg.DATASET.NAME, BENCHMARKS, "data set (DATASET.NAME)")
    return Path(resolve_path(cfg.DATASET.ROOT)) / Path(cfg.DATASET.FOLDER or BENCHMARKS[known].FOLDER).expanduser()


def find_output(cfg) -> Path:
    """The folder below which everything is written."""
    return Path(resolve_path(cfg.OUTPUT_ROOT))


def find_datasets(cfg) -> list[str]:
    """Names of the benchmarks for the method whose folder is in DATASET.ROOT; MissingDataError if there is none."""
    root = Path(resolve_path(cfg.DATASET.ROOT))
    known = {name: kind for name, kind in BENCHMARKS.items() if kind.task == METHODS[cfg.METHOD.NAME].task}
    names = [name for name, benchmark in known.items() if (root / benchmark.FOLDER).is_dir()]
    if not names:
        command = fill_command(cfg.DATASET.PREPARE, cfg.DATASET.NAME, root)
        folders = ", ".join(benchmark.FOLDER for benchmark in known.values())
        raise MissingDataError(f"{root} (DATASET.ROOT) holds none of {folders}; `{command}` makes one")
    return names


def build_pairs(cfg, split: str, per_category: int = 0) -> Dataset:
    """The pairs of a split, or the items of another task's, still without caches."""
    try:
        benchmark = build_benchmark(
            cfg.DATASET.NAME,
            find_folder(cfg),
            split,
            cfg.DATASET.CATEGORY,
            index_root=find_caches(cfg) / "index",
            prepare=cfg.DATASET.PREPARE,
            threshold_rule=cfg.DATASET.THRESHOLD,
            pairs_per_category=per_category or cfg.DATASET.PAIRS,
        )
    except (DatasetError, MissingDataError):
        raise
    except ValueError as error:  # an unknown name
        raise ConfigError(str(error)) from error
    if TOTAL in benchmark.categories:
        raise ConfigError(f'{benchmark.root} has a category called "{TOTAL}", the name of all of them: rename it')
    return find_task(benchmark.task).open(cfg, benchmark)


def build_all_splits(cfg) -> list[Dataset]:
    """The pairs of every split that the configured benchmark has."""
    return [build_pairs(cfg, split) for split in BENCHMARKS[cfg.DATASET.NAME].SPLITS]


def build_method(
    cfg,
    device: torch.device,
    categories: Sequence[str] | None,  # of the data set; None: images of no data set
    training: bool = False,
    folder: str | Path | None = None,  # of its learned weights, if not where the config says
) -> Method:
    """The configured method at the settings of TRAIN, with its objective, or of TEST, with its learned weights."""
    method = find_method(cfg.METHOD.NAME).build(cfg, device, categories, training, folder)
    reads = {key.removesuffix(MIRRORED) for key in method.reads}
    if unnamed := reads - {*METHODS[cfg.METHOD.NAME].reads, "condition"}:  # what a result says made it
        raise ValueError(f"the line of {cfg.METHOD.NAME} in METHODS does not say that it reads {', '.join(unnamed)}")
    if training:
        method.objective = build_loss(cfg)
    if weights := cfg.TRAIN.START if training else cfg.METHOD.WEIGHTS:
        place = Path(folder or find_output(cfg) / "prompt" / weights)
        if (made_by := method.made_by(place)) is None:
            raise ConfigError(
                f"{place} holds no weights: learn them first, or name others (TRAIN.START, METHOD.WEIGHTS)"
            )
        require_training(cfg, place, made_by)
        method.load(place)
    return method.eval()


def build_test(
    cfg, choose_pairs: Callable[[Dataset], Sequence[int]] | None = None
) -> tuple[Accelerator, Dataset, Method]:
    """What a test of the configured method needs: the process, the pairs with their caches, the method.

    choose_pairs: positions of the pairs to keep, in this order; None keeps all.
    """
    accelerator, pairs = build_accelerator(cfg), build_pairs(cfg, cfg.TEST.SPLIT)
    pairs = pairs if choose_pairs is None else pairs.select(choose_pairs(pairs))
    if isinstance(pairs, PairDataset):
        pairs.alignment = build_alignment(cfg, find_method(cfg.METHOD.NAME), pairs)
    method = build_method(cfg, accelerator.device, pairs.benchmark.image_categories)
    build_caches(cfg, (pairs,), method, accelerator)
    return accelerator, pairs, method


def build_generator(cfg, device: torch.device) -> Generator:
    """Stable Diffusion as it makes images, with all its parts."""
    networks = load_stable_diffusion(
        dtype=resolve_dtype(cfg.PRECISION, device),
        device=device,
        seed=cfg.SEED,
        **find_stable_diffusion(cfg),
    )
    return Generator(networks, cfg.GENERATE.STEPS, cfg.GENERATE.GUIDANCE)


def build_loss(cfg) -> nn.Module:
    """The training objective; (B,) losses. Its parameters are the keys of LOSS in lower case, as many as it takes."""
    kind = LOSSES[cfg.LOSS.NAME]
    takes = inspect.signature(kind).parameters
    settings = {key.lower(): value for key, value in cfg.LOSS.items()}
    return kind(**{name: value for name, value in settings.items() if name in takes})
