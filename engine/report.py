"""From a method and data to printed tables and result files."""

import json
from pathlib import Path

import pandas as pd
import torch
from torch.utils.data import Dataset

from config import dump_config, get_default_config, iter_keys, resolve_path
from dataset.pair_dataset import PairDataset
from engine.correspondence import summarise_scores
from engine.identity import MadeBy, digest_pairs, place_result, what_makes_result
from engine.predictions import Points, score_points
from engine.process import describe_environment
from engine.result import write_summary
from engine.task import task_of
from model.method import METHODS, find_method
from utils.draw import save_figure
from utils.store import digest, file_digest, write_text

LONGEST_STEM = 210  # characters; file systems take names of 255, with suffix and the mark of a temporary file


def build_result_stem(cfg) -> Path:
    """Where the results of a test go, without suffix: beside the prompt. The release's name comes first.

    Results that something else made get another name (engine.identity.place_result).
    """
    name, (height, width) = find_method(cfg.METHOD.NAME).name_tested(cfg), cfg.DATASET.IMAGE_SIZE
    words = [cfg.METHOD.NAME] if cfg.METHOD.NAME not in (name, get_default_config().METHOD.NAME) else []
    if METHODS[cfg.METHOD.NAME].takes_prompt:
        words += [f"Layer{cfg.METHOD.LAYER}", f"Timestep{cfg.TEST.TIMESTEP}", f"Ensemble{cfg.TEST.ENSEMBLE}"]
    words += [f"Seed{cfg.SEED}", f"{height}x{width}", *task_of(cfg).name_settings(cfg)]
    stem = f"{cfg.DATASET.NAME}_result_{name}_{cfg.DATASET.CATEGORY}_{cfg.TEST.SPLIT}_{'-'.join(words)}"
    if len(stem) > LONGEST_STEM:
        stem = f"{stem[: LONGEST_STEM - 9]}-{digest(stem)[:8]}"
    return Path(resolve_path(cfg.OUTPUT_ROOT)) / "prompt" / name / stem


def report(cfg, summary: dict, scores: pd.DataFrame, method, data: Dataset, device: torch.device) -> None:
    """Print the tables of a test and write its files, and pictures."""
    task = task_of(cfg)
    stem = _write(cfg, build_result_stem(cfg), what_makes_result(cfg, data), summary, scores, device)
    drawn = task.draw(cfg, method, data, scores, cfg.TEST.PICTURES, method.name_tested(cfg), device)
    for number, pictures in enumerate(drawn):
        for kind, picture in pictures.items():
            save_figure(f"{stem}_{number}_{kind}.png", picture)
    if drawn:
        print(f"and {sum(map(len, drawn))} pictures")


def report_points(cfg, points: Points, pairs: PairDataset, source: Path, name: str, localiser: str) -> Path:
    """Print and write the tables of predictions that a file, `source`, holds; the stem of the files written.

    localiser: whose the tables say that they are.
    """
    section = cfg.EVAL
    scores = score_points(points, pairs, section.ALPHAS, section.PROTOCOL, section.INEQUALITY, localiser)
    summary = summarise_scores(cfg, scores, pairs, (localiser,))
    keys = ("DATASET.FRAME", "DATASET.IMAGE_SIZE", "EVAL.")
    settings = {key: value for key, value in iter_keys(cfg) if key.startswith(keys)}
    made_by = {"predictions": file_digest(source), "test pairs": digest_pairs(pairs), **settings}
    words = "-".join(task_of(cfg).name_settings(cfg))
    stem = f"{cfg.DATASET.NAME}_result_{name}_{cfg.DATASET.CATEGORY}_{cfg.TEST.SPLIT}_{words}"
    stem = Path(resolve_path(cfg.OUTPUT_ROOT)) / "prompt" / name / stem
    return _write(cfg, stem, json.loads(json.dumps(made_by)), summary, scores, torch.device("cpu"))


def _write(cfg, stem: Path, made_by: MadeBy, summary: dict, scores: pd.DataFrame, device: torch.device) -> Path:
    """Print the tables; write them as text, the scores as CSV, the summary as JSON. The stem of the files' names."""
    task = task_of(cfg)
    table = task.format_table(summary)
    print(f"\n{table}\n{task.format_overview(summary)}")
    stem = place_result(stem, made_by)
    write_text(f"{stem}.txt", table)
    task.write_scores(stem, scores)
    write_summary(f"{stem}.json", summary, dict(iter_keys(cfg)), describe_environment(device), made_by)
    write_text(f"{stem}.yaml", dump_config(cfg))
    print(f"written: {stem}.txt, {', '.join(task.files)}, .json, .yaml")
    return stem
