"""From a matcher and pairs to printed tables and result files."""

from pathlib import Path

import pandas as pd
import torch
from accelerate import Accelerator

from config import ConfigError, dump_config, get_default_config, iter_keys, resolve_path
from dataset.pair_dataset import PairDataset
from engine.evaluate import Protocol, Share, evaluate
from engine.identity import place_result, what_makes_result
from engine.picture import choose_pairs, draw_pairs
from engine.process import describe_environment, gather_scores
from engine.result import (
    PAIRS,
    PREDICTIONS,
    format_category_table,
    format_overview,
    write_predictions,
    write_scores,
    write_summary,
)
from model.method import METHODS, find_method
from utils.draw import save_figure
from utils.pck import TOTAL, summarise
from utils.store import digest, write_text

LONGEST_STEM = 210  # characters; file systems take names of 255, with suffix and the mark of a temporary file


def build_protocol(cfg) -> Protocol:
    """How the config wants predictions made and judged."""
    section = cfg.EVAL
    return Protocol(section.LOCALISERS, section.ALPHAS, section.BETA, section.SIGMA, section.PROTOCOL)


def evaluate_split(cfg, matcher, pairs: PairDataset, accelerator: Accelerator) -> tuple[dict, pd.DataFrame]:
    """Summary and per-pair scores over all processes; every process must call this and gets both."""
    if TOTAL in pairs.benchmark.categories:
        raise ConfigError(f'{pairs.benchmark.root} has a category called "{TOTAL}", the name of all of them: rename it')
    section, workers = cfg.EVAL, cfg.DATASET.NUM_WORKERS
    share = Share(section.BATCH_SIZE, workers, accelerator.process_index, accelerator.num_processes)
    scores = evaluate(matcher, pairs, build_protocol(cfg), cfg.SEED, accelerator.device, share)
    scores = gather_scores(scores)
    summary = summarise(scores, cfg.EVAL.LOCALISERS, cfg.EVAL.ALPHAS, cfg.EVAL.BY, cfg.EVAL.AVERAGE)
    left_out = len(pairs.benchmark.left_out)
    return {**summary, "category": cfg.DATASET.CATEGORY, "pairs_left_out": left_out}, scores


def build_result_name(cfg) -> str:
    """What the results are of: the prompt, or the matcher if it takes none."""
    return find_method(cfg.METHOD.NAME).name_tested(cfg)


def build_result_stem(cfg) -> Path:
    """Where the results of a test go, without suffix: beside the prompt. The release's name comes first.

    Results that something else made get another name (engine.identity.place_result).
    """
    name, section, (height, width) = build_result_name(cfg), cfg.EVAL, cfg.DATASET.IMAGE_SIZE
    words = [cfg.METHOD.NAME] if cfg.METHOD.NAME not in (name, get_default_config().METHOD.NAME) else []
    if METHODS[cfg.METHOD.NAME].takes_prompt:
        words += [f"Layer{cfg.METHOD.LAYER}", f"Timestep{cfg.TEST.TIMESTEP}", f"Ensemble{cfg.TEST.ENSEMBLE}"]
    words += [f"Seed{cfg.SEED}", f"{height}x{width}", section.PROTOCOL, section.BY, section.AVERAGE]
    stem = f"{cfg.DATASET.NAME}_result_{name}_{cfg.DATASET.CATEGORY}_{cfg.TEST.SPLIT}_{'-'.join(words)}"
    if len(stem) > LONGEST_STEM:
        stem = f"{stem[: LONGEST_STEM - 9]}-{digest(stem)[:8]}"
    return Path(resolve_path(cfg.OUTPUT_ROOT)) / "prompt" / name / stem


def report(cfg, summary: dict, scores: pd.DataFrame, matcher, pairs: PairDataset, device: torch.device) -> None:
    """Print the tables; write them as text, pairs and predicted points as CSV, the summary as JSON, and pictures."""
    table = format_category_table(summary)
    print(f"\n{table}\n{format_overview(summary)}")
    made_by = what_makes_result(cfg, pairs)
    stem = place_result(build_result_stem(cfg), made_by)
    write_text(f"{stem}.txt", table)
    write_scores(f"{stem}{PAIRS}", scores)
    write_predictions(f"{stem}{PREDICTIONS}", scores)
    write_summary(f"{stem}.json", summary, dict(iter_keys(cfg)), describe_environment(device), made_by)
    write_text(f"{stem}.yaml", dump_config(cfg))
    positions = choose_pairs(pairs, cfg.TEST.PICTURES)
    for number, pictures in enumerate(draw_pairs(cfg, matcher, pairs, positions, build_result_name(cfg), device)):
        for kind, picture in pictures.items():
            save_figure(f"{stem}_{number}_{kind}.png", picture)
    print(
        f"written: {stem}.txt, {PAIRS}, {PREDICTIONS}, .json, .yaml"
        + (f", {len(positions)} x 2 pictures" if positions else "")
    )
