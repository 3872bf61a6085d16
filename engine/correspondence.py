"""Pairs of images with keypoints, judged by PCK, as a task of the engine."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pandas as pd
from accelerate import Accelerator

from config import get_default_config
from dataset import Benchmark
from dataset.pair_dataset import PairDataset
from engine.evaluate import evaluate
from engine.identity import what_makes_matches
from engine.journal import Journal
from engine.picture import PairGenerator, choose_pairs, draw_pairs, match_pair_densely
from engine.process import gather_scores
from engine.result import (
    COUNTED,
    PAIRS,
    PREDICTIONS,
    RULE,
    format_category_table,
    format_metrics,
    format_overview,
    read_scores,
    write_predictions,
    write_scores,
)
from engine.task import Summary, Task
from model.source import find_caches
from utils.draw import plot_dense, plot_generated
from utils.frame import build_frame
from utils.metrics import count_confused, keypoint_average_precision, measure_aware, refuse_nearer, select_aware
from utils.pck import AWARE, KAP, PARTNER, PROTOCOLS, TOTAL, alpha_key, summarise


class Correspondence(Task):
    """Localisers predict points, which are right if they are near enough."""

    name, unit, key = "correspondence", "pair", "pck"
    files = (PAIRS, PREDICTIONS)
    nothing = "no validation pair has keypoints"
    generator: PairGenerator | None = None  # of VAL.GENERATE

    def open(self, cfg, benchmark: Benchmark) -> PairDataset:
        return PairDataset(benchmark, build_frame(cfg.DATASET.FRAME, cfg.DATASET.IMAGE_SIZE))

    def digest_records(self, benchmark: Benchmark) -> str:
        records = hashlib.sha256()
        records.update(f"{benchmark.name} {benchmark.threshold_rule} {' '.join(benchmark.categories)}".encode())
        for record in benchmark:
            words = record.pair_id, record.category, record.kps_ids, sorted(record.flags.items())
            sides = [(ref.identifier, ref.category, ref.size, ref.flip) for ref in (record.src, record.trg)]
            seen = [seen for seen in (record.src_seen, record.trg_seen) if seen]
            sides += [(record.src.azimuth, record.trg.azimuth), *(keypoints.ids for keypoints in seen)]
            records.update(repr((words, sides)).encode())
            points = [keypoints.points for keypoints in seen]
            for array in (record.src_kps, record.trg_kps, record.src_bbox, record.trg_bbox, *points):
                records.update(array.tobytes())
        return records.hexdigest()[:16]

    def evaluate(self, cfg, method, data: PairDataset, accelerator: Accelerator):
        journal = build_journal(cfg, method) if method.keeps_pairs else None
        share = accelerator.process_index, accelerator.num_processes
        scores = gather_scores(evaluate(cfg, method, data, accelerator.device, *share, journal))
        return summarise_scores(cfg, scores, data), scores

    def is_sound(self, summary: Summary) -> bool:
        values = [value for rows in summary["pck"].values() for row in rows.values() for value in row.values()]
        return (
            all(value is None or 0 <= value <= 1 for value in values)
            and all(isinstance(summary[key], int) and summary[key] >= 0 for key in COUNTED)
            and summary["protocol"] in PROTOCOLS
            and all(TOTAL in row for rows in summary["pck"].values() for row in rows.values())
        )

    def find_score(self, cfg, summary: Summary) -> float | None:
        return summary["pck"][cfg.VAL.LOCALISER][alpha_key(cfg.VAL.ALPHA)][TOTAL]

    def name_score(self, cfg) -> str:
        return f"PCK@{cfg.VAL.ALPHA:g} ({cfg.VAL.LOCALISER})"

    def list_numbers(self, summary: Summary) -> dict[str, float]:
        numbers = {
            f"{localiser}/pck@{alpha}": row[TOTAL]
            for localiser, rows in summary["pck"].items()
            for alpha, row in rows.items()
        }
        return {tag: value for tag, value in numbers.items() if value is not None}

    def format_overview(self, summary: Summary) -> str:
        return format_overview(summary)

    def format_table(self, summary: Summary) -> str:
        metrics = format_metrics(summary.get("metrics", {}))
        return format_category_table(summary) + (f"{RULE}\n{metrics}" if metrics else "")

    def name_settings(self, cfg) -> list[str]:
        section, usual = cfg.EVAL, get_default_config()
        words = [section.PROTOCOL, section.BY, section.AVERAGE]
        words += [cfg.DATASET.FRAME] if cfg.DATASET.FRAME != usual.DATASET.FRAME else []
        words += ["strict"] if section.INEQUALITY != usual.EVAL.INEQUALITY else []
        return words + ([f"Pose-{cfg.POSE.ALIGN}"] if cfg.POSE.ALIGN != usual.POSE.ALIGN else [])

    def write_scores(self, stem, scores) -> None:
        write_scores(f"{stem}{PAIRS}", scores)
        write_predictions(f"{stem}{PREDICTIONS}", scores)

    def read_scores(self, stem):
        return read_scores(f"{stem}{PAIRS}")

    def draw(self, cfg, method, data, scores, count, title, device, validating=False):
        """Of validations also what VAL.DENSE and VAL.GENERATE ask for."""
        positions = choose_pairs(data, count)
        pictures = draw_pairs(cfg, method, data, positions, title, device)
        if validating and cfg.VAL.DENSE:
            for picture, position in zip(pictures, positions, strict=True):
                pair = match_pair_densely(cfg, method, data, position, device, cfg.VAL.DENSE)
                picture["dense"] = plot_dense([{title: pair}])
        if validating and cfg.VAL.GENERATE:
            self.generator = self.generator or PairGenerator(cfg, device)
            seeds = range(cfg.SEED, cfg.SEED + cfg.VAL.GENERATE)
            for picture, position in zip(pictures, positions, strict=True):
                pair = self.generator.generate(method.prompt, data, position, seeds)
                picture["generated"] = plot_generated([{title: pair}])
        return pictures


def build_journal(cfg, method) -> Journal:
    """Of predictions on the configured data set, whatever they are judged by."""
    folder = find_caches(cfg) / "predictions" / cfg.DATASET.NAME
    return Journal(folder, what_makes_matches(cfg, method), cfg.EVAL.LOCALISERS)


def summarise_scores(cfg, scores: pd.DataFrame, data: PairDataset, localisers: Sequence[str] = ()) -> dict:
    """Everything that a result says of its scores, of the configured localisers or others; JSON values."""
    section, localisers = cfg.EVAL, localisers or cfg.EVAL.LOCALISERS
    summary = summarise(scores, localisers, section.ALPHAS, section.BY, section.AVERAGE)
    height, width = cfg.DATASET.IMAGE_SIZE
    words = {"fitted": f"{cfg.DATASET.FRAME}, {height} x {width}"} if section.PROTOCOL == "resized" else {}
    words |= {"category": cfg.DATASET.CATEGORY, "pairs_left_out": len(data.benchmark.left_out)}
    return {**summary, **words, "metrics": measure(scores, localisers, section.ALPHAS)}


def measure(scores: pd.DataFrame, localisers: Sequence[str], alphas: Sequence[float]) -> dict:
    """What the scores say beyond PCK, in [0, 1]: {"aware": its shares, "localisers": {name: {alpha: {metric: value}}}}.

    Only what the annotations of the data set allow; all averages are over pairs, or over points where that is said.
    """
    aware = measure_aware(scores) if AWARE in scores else {"points": 0}
    tables = {"PCK-dagger": (refuse_nearer(scores), "image")}
    if aware["points"]:
        tables |= {f"geometry-aware per {by}": (select_aware(scores), by) for by in ("image", "point")}
    pck = {name: summarise(table, localisers, alphas, by)["pck"] for name, (table, by) in tables.items()}
    found: dict[str, dict] = {name: {alpha_key(alpha): {} for alpha in alphas} for name in localisers}
    for name, rows in found.items():
        for alpha in alphas:
            row = rows[alpha_key(alpha)]
            row |= {metric: values[name][alpha_key(alpha)][TOTAL] for metric, values in pck.items()}
            if any(np.isfinite(lengths).any() for lengths in scores[PARTNER + name]):
                row["side confused, of wrong"] = count_confused(scores, name, alpha)["share"]
    for alpha in alphas:
        if f"{KAP}+@{alpha_key(alpha)}" in scores:  # of the similarities, whatever the localiser
            for rows in found.values():
                rows[alpha_key(alpha)] |= {
                    "KAP": keypoint_average_precision(scores, alpha),
                    "KAP pooled": keypoint_average_precision(scores, alpha, pooled=True),
                }
    return {"aware": aware if aware["points"] else None, "localisers": found}
