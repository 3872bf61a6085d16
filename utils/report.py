"""From a matcher and pairs to printed tables and result files."""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from tqdm import tqdm

from config import dump_config, iter_keys, resolve_path
from dataset.pair_dataset import PairDataset
from utils.draw import save_figure
from utils.evaluate import Protocol, evaluate
from utils.pck import Record, summarise
from utils.picture import choose_pairs, draw_pairs
from utils.result import (
    format_category_table,
    format_overview,
    write_pairs_csv,
    write_summary_json,
    write_text,
)
from utils.runtime import describe_environment, gather_records


def build_protocol(cfg) -> Protocol:
    """How the config wants predictions made and judged."""
    section = cfg.EVAL
    return Protocol(section.LOCALISERS, section.ALPHAS, section.BETA, section.SIGMA, section.PROTOCOL)


def evaluate_split(cfg, matcher, pairs: PairDataset, accelerator: Accelerator) -> tuple[dict, list[Record]]:
    """Summary and per-pair records over all processes; every process must call this and gets both."""
    quiet = not accelerator.is_main_process or not sys.stderr.isatty()
    records = evaluate(
        matcher,
        pairs,
        build_protocol(cfg),
        seed=cfg.SEED,
        batch_size=cfg.EVAL.BATCH_SIZE,
        device=accelerator.device,
        num_workers=cfg.DATASET.NUM_WORKERS,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        feature_gib=cfg.EVAL.FEATURE_GIB,
        progress=lambda batches: tqdm(batches, desc="evaluating", unit="batch", disable=quiet),
    )
    records = gather_records(records)
    summary = summarise(records, cfg.EVAL.LOCALISERS, cfg.EVAL.ALPHAS, cfg.EVAL.BY, cfg.EVAL.AVERAGE)
    return summary, records


def build_result_stem(cfg) -> Path:
    """Where the results of a tested prompt go, without suffix: beside the prompt."""
    test, name = cfg.TEST, cfg.PROMPT.TYPE
    height, width = cfg.DATASET.IMAGE_SIZE
    settings = f"Layer{cfg.MATCHER.LAYER}-Timestep{test.TIMESTEP}-Ensemble{test.ENSEMBLE}-Seed{cfg.SEED}"
    settings += f"-{cfg.NETWORK.NAME}-{cfg.MATCHER.POSTERIOR}-{height}x{width}"
    measure = f"{cfg.EVAL.PROTOCOL}-{cfg.EVAL.BY}-{cfg.EVAL.AVERAGE}"
    stem = f"{cfg.DATASET.NAME}_result_{name}_{cfg.DATASET.CATEGORY}_{test.SPLIT}_{settings}-{measure}"
    return Path(resolve_path(cfg.OUTPUT_ROOT)) / "prompt" / name / stem


def report(cfg, summary: dict, records: list[Record], matcher, pairs: PairDataset, device: torch.device) -> None:
    """Print the tables; write them as text, the pairs as CSV, the summary as JSON, and TEST.PICTURES pictures."""
    table = format_category_table(summary)
    print(f"\n{table}\n{format_overview(summary)}")
    stem = build_result_stem(cfg)
    write_text(f"{stem}.txt", table)
    write_pairs_csv(f"{stem}_pairs.csv", records)
    write_summary_json(f"{stem}.json", summary, dict(iter_keys(cfg)), describe_environment(device))
    write_text(f"{stem}.yaml", dump_config(cfg))
    positions = choose_pairs(pairs, cfg.TEST.PICTURES)
    for number, pictures in enumerate(draw_pairs(cfg, matcher, pairs, positions, cfg.PROMPT.TYPE, device)):
        for kind, picture in pictures.items():
            save_figure(f"{stem}_{number}_{kind}.png", picture)
    print(f"written: {stem}.txt, _pairs.csv, .json, .yaml" + (f", {len(positions)} x 2 pictures" if positions else ""))
