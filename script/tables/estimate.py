"""How long a row will take: its arithmetic, counted, over the speed that rows before it have reached.

Training: steps x batch x (two images through the UNet and back, one prompt through the text transformer and back), and
the validations. Test: draws x images (prompts that serve every pair of an image) or draws x two images of each pair.
Before the first row has been measured, the speed is taken as a share of the device's fastest matrix product. A matcher
without a UNet is priced like one UNet pass per image, which is more than it needs.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from functools import cache

from config import resolve_network
from dataset import build_benchmark
from engine.build import find_caches, find_folder
from model.backbone.device import resolve_device, resolve_dtype
from model.prompt.build import name_trained
from model.prompt.name import PromptName, parse_prompt_name
from script.speed.flops import TERA, Work, count_parts, require_configs
from script.speed.measure import measure_matmul_peak
from script.tables.results import Job, State

FIRST_SHARE = 0.3  # of the matmul peak, assumed until a row has been measured
STARTUP_S = 10.0  # imports and loading
STAGES = ("train", "test")


@dataclass(frozen=True)
class Counts:
    """Pairs and different images of a split."""

    pairs: int
    images: int


def count_tflop(job: Job) -> dict[str, float]:
    """TFLOP of the row's stages; 0 for the training of a row without one."""
    return {"train": _count_training(job.training), "test": _count_test(job.test)}


def _count_training(cfg) -> float:
    if cfg is None:
        return 0.0
    parts = _parts_of(cfg)
    pairs, section = count_split(cfg, cfg.TRAIN.SPLIT).pairs, cfg.TRAIN
    per_epoch = max(1, pairs // section.BATCH_SIZE)
    steps = min(section.MAX_STEPS or section.EPOCHS * per_epoch, section.EPOCHS * per_epoch)
    pair = 2 * section.ENSEMBLE * sum(parts["unet"]) + sum(parts["text"])
    validations = -(-steps // per_epoch)
    validation = count_pass(cfg, name_trained(cfg), cfg.VAL.SPLIT, cfg.VAL.ENSEMBLE)
    return steps * section.BATCH_SIZE * pair + validations * validation


def _count_test(cfg) -> float:
    return count_pass(cfg, parse_prompt_name(cfg.PROMPT.TYPE), cfg.TEST.SPLIT, cfg.TEST.ENSEMBLE)


def count_pass(cfg, prompt: PromptName, split: str, ensemble: int) -> float:
    """Features of every image, or of both images of every pair if the prompt depends on the pair."""
    parts, counts = _parts_of(cfg), count_split(cfg, split)
    by_pair = prompt.cpm is not None and prompt.cpm.scope == "Pair"
    return (2 * counts.pairs if by_pair else counts.images) * (ensemble * parts["unet"][0] + parts["text"][0])


def count_split(cfg, split: str) -> Counts:
    """Raises MissingDataError if the data set is not there."""
    return _count_split(
        cfg.DATASET.NAME, str(find_folder(cfg)), split, cfg.DATASET.CATEGORY, str(find_caches(cfg) / "index")
    )


@cache
def _count_split(name: str, folder: str, split: str, category: str, index: str) -> Counts:
    benchmark = build_benchmark(name, folder, split, category, index)
    return Counts(len(benchmark), len({ref.identifier for ref in benchmark.images()}))


def _parts_of(cfg) -> dict[str, tuple[float, float]]:
    section = cfg.NETWORK
    return _count_parts(
        resolve_network(section.FOLDER), section.INIT, section.ARCHITECTURE, cfg.DATASET.IMAGE_SIZE, cfg.METHOD.LAYER
    )


@cache
def _count_parts(folder: str, init: str, architecture: str, image_size: tuple, layer: int) -> dict:
    """(forward, backward) TFLOP of an image through the UNet and of a prompt through the text transformer."""
    work = Work(require_configs(folder, init, architecture), image_size, (257, 768), layer)
    counted = count_parts(work)
    names = {"unet": f"UNet to up-block {layer}", "text": "text transformer"}
    return {key: tuple(flops / TERA for flops in counted[name]) for key, name in names.items()}


class Clock:
    """TFLOP to seconds of one row, from what finished rows took."""

    def __init__(self, cfg, state: State, rows_per_device: int = 1) -> None:
        device = resolve_device(cfg.DEVICE)
        peak = measure_matmul_peak(device, resolve_dtype(cfg.PRECISION, device))
        self.first = FIRST_SHARE * peak / rows_per_device
        self.speeds: dict[str, list[float]] = {stage: [] for stage in STAGES}
        for entry in state.rows.values():
            for stage in STAGES:
                if stage in entry.get("seconds", {}):
                    self.learn(stage, entry["tflop"][stage], entry["seconds"][stage])

    def learn(self, stage: str, tflop: float, seconds: float) -> None:
        """A stage of a row has been measured."""
        self.speeds[stage].append(tflop / max(seconds - STARTUP_S, 1.0))

    def seconds(self, stage: str, tflop: float) -> float:
        speeds = self.speeds[stage]
        return STARTUP_S + tflop / (statistics.median(speeds) if speeds else self.first)

    def explain(self) -> str:
        """One line: where the estimates come from."""
        known = {stage: statistics.median(speeds) for stage, speeds in self.speeds.items() if speeds}
        measured = ", ".join(f"{stage} {speed:.3g} TFLOP/s" for stage, speed in known.items())
        return (
            f"estimates: {STARTUP_S:.0f} s start-up + counted TFLOP / speed; speed: "
            f"{f'median of finished rows ({measured})' if known else 'no row measured yet'}, else {self.first:.3g} "
            f"TFLOP/s ({FIRST_SHARE:.0%} of a row's share of the fastest matrix product here); caches of new images "
            "come on top"
        )


def format_duration(seconds: float) -> str:
    """45 s, 12 min, 3 h 20 min, 2 d 4 h."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"
