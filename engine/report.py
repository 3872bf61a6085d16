"""From a method and data to printed tables and result files."""

import json
from pathlib import Path

import pandas as pd
import torch
from accelerate import Accelerator
from torch.utils.data import Dataset

from config import dump_config, get_default_config, iter_keys, resolve_path
from dataset.pair_dataset import PairDataset
from engine.correspondence import summarise_scores
from engine.identity import digest_pairs, place_result, what_makes_result
from engine.predictions import LOCALISER, Points, score_points
from engine.process import describe_environment
from engine.result import write_summary
from engine.task import task_of
from model.method import METHODS, find_method
from utils.draw import save_figure
from utils.store import digest, file_digest, write_text

LONGEST_STEM = 210  # characters; file systems take names of 255, with suffix and the mark of a temporary file


def evaluate_split(cfg, method, data: Dataset, accelerator: Accelerator) -> tuple[dict, pd.DataFrame]:
    """Summary and scores, a row per pair or item, over all processes; every process must call this and gets both."""
    return task_of(cfg).evaluate(cfg, method, data, accelerator)


def build_result_name(cfg) -> str:
    """What the results are of: the prompt, or the matcher if it takes none."""
    return find_method(cfg.METHOD.NAME).name_tested(cfg)


def build_result_stem(cfg) -> Path:
    """Where the results of a test go, without suffix: beside the prompt. The release's name comes first.

    Results that something else made get another name (engine.identity.place_result).
    """
    name, (height, width) = build_result_name(cfg), cfg.DATASET.IMAGE_SIZE
    words = [cfg.METHOD.NAME] if cfg.METHOD.NAME not in (name, get_default_config().METHOD.NAME) else []
    if METHODS[cfg.METHOD.NAME].takes_prompt:
        words += [f"Layer{cfg.METHOD.LAYER}", f"Timestep{cfg.TEST.TIMESTEP}", f"Ensemble{cfg.TEST.ENSEMBLE}"]
    words += [f"Seed{cfg.SEED}", f"{height}x{width}", *task_of(cfg).name_settings(cfg)]
    stem = f"{cfg.DATASET.NAME}_result_{name}_{cfg.DATASET.CATEGORY}_{cfg.TEST.SPLIT}_{'-'.join(words)}"
    if len(stem) > LONGEST_STEM:
        stem = f"{stem[: LONGEST_STEM - 9]}-{digest(stem)[:8]}"
    return Path(resolve_path(cfg.OUTPUT_ROOT)) / "prompt" / name / stem


def report(cfg, summary: dict, scores: pd.DataFrame, method, data: Dataset, device: torch.device) -> None:
    """Print the tables; write them as text, the scores as CSV, the summary as JSON, and pictures."""
    task = task_of(cfg)
    table = task.format_table(summary)
    print(f"\n{table}\n{task.format_overview(summary)}")
    made_by = what_makes_result(cfg, data)
    stem = place_result(build_result_stem(cfg), made_by)
    write_text(f"{stem}.txt", table)
    task.write_scores(stem, scores)
    write_summary(f"{stem}.json", summary, dict(iter_keys(cfg)), describe_environment(device), made_by)
    write_text(f"{stem}.yaml", dump_config(cfg))
    drawn = task.draw(cfg, method, data, scores, cfg.TEST.PICTURES, build_result_name(cfg), device)
    for number, pictures in enumerate(drawn):
        for kind, picture in pictures.items():
            save_figure(f"{stem}_{number}_{kind}.png", picture)
    count = sum(map(len, drawn))
    print(f"written: {stem}.txt, {', '.join(task.files)}, .json, .yaml" + (f", {count} pictures" if count else ""))


def report_points(cfg, points: Points, pairs: PairDataset, source: Path, name: str, localiser: str = LOCALISER) -> Path:
    """Print and write the tables of predictions that a file, `source`, holds; the stem of the files written.

    localiser: whose the tables say that they are.
    """
    section, task = cfg.EVAL, task_of(cfg)
    scores = score_points(points, pairs, section.ALPHAS, section.PROTOCOL, section.INEQUALITY, localiser)
    summary = summarise_scores(cfg, scores, pairs, (localiser,))
    table = task.format_table(summary)
    print(f"\n{table}\n{task.format_overview(summary)}")
    keys = ("DATASET.FRAME", "DATASET.IMAGE_SIZE", "EVAL.")
    settings = {key: value for key, value in iter_keys(cfg) if key.startswith(keys)}
    made_by = {"predictions": file_digest(source), "test pairs": digest_pairs(pairs), **settings}
    made_by = json.loads(json.dumps(made_by))
    words = "-".join(task.name_settings(cfg))
    stem = f"{cfg.DATASET.NAME}_result_{name}_{cfg.DATASET.CATEGORY}_{cfg.TEST.SPLIT}_{words}"
    stem = place_result(Path(resolve_path(cfg.OUTPUT_ROOT)) / "prompt" / name / stem, made_by)
    write_text(f"{stem}.txt", table)
    task.write_scores(stem, scores)
    write_summary(f"{stem}.json", summary, dict(iter_keys(cfg)), describe_environment(torch.device("cpu")), made_by)
    write_text(f"{stem}.yaml", dump_config(cfg))
    print(f"written: {stem}.txt, {', '.join(task.files)}, .json, .yaml")
    return stem
