"""Pairs of images with keypoints, judged by PCK, as a task of the engine."""

from __future__ import annotations

import hashlib

from accelerate import Accelerator

from config import ConfigError
from dataset import Benchmark
from dataset.pair_dataset import PairDataset
from engine.evaluate import Protocol, Share, evaluate
from engine.picture import Preview, choose_pairs, draw_pairs
from engine.process import gather_scores
from engine.result import (
    COUNTED,
    PAIRS,
    PREDICTIONS,
    format_category_table,
    format_overview,
    write_predictions,
    write_scores,
)
from engine.task import Summary, Task
from utils.frame import build_frame
from utils.pck import PROTOCOLS, TOTAL, alpha_key, summarise


class Correspondence(Task):
    """Localisers predict points, which are right if they are near enough."""

    name, unit, key = "correspondence", "pair", "pck"
    files = (PAIRS, PREDICTIONS)
    nothing = "no validation pair has keypoints"

    def open(self, cfg, benchmark: Benchmark) -> PairDataset:
        return PairDataset(benchmark, build_frame(cfg.DATASET.FRAME, cfg.DATASET.IMAGE_SIZE))

    def digest_records(self, benchmark: Benchmark) -> str:
        records = hashlib.sha256()
        records.update(f"{benchmark.name} {benchmark.threshold_rule} {' '.join(benchmark.categories)}".encode())
        for record in benchmark:
            words = record.pair_id, record.category, record.kps_ids, sorted(record.flags.items())
            sides = [(ref.identifier, ref.category, ref.size, ref.flip) for ref in (record.src, record.trg)]
            records.update(repr((words, sides)).encode())
            for array in (record.src_kps, record.trg_kps, record.src_bbox, record.trg_bbox):
                records.update(array.tobytes())
        return records.hexdigest()[:16]

    def evaluate(self, cfg, method, data: PairDataset, accelerator: Accelerator):
        if TOTAL in data.benchmark.categories:
            root = data.benchmark.root
            raise ConfigError(f'{root} has a category called "{TOTAL}", the name of all of them: rename it')
        section, workers = cfg.EVAL, cfg.DATASET.NUM_WORKERS
        share = Share(section.BATCH_SIZE, workers, accelerator.process_index, accelerator.num_processes)
        protocol = build_protocol(cfg)
        scores = gather_scores(evaluate(method, data, protocol, cfg.SEED, accelerator.device, share))
        summary = summarise(scores, section.LOCALISERS, section.ALPHAS, section.BY, section.AVERAGE)
        left_out = len(data.benchmark.left_out)
        return {**summary, "category": cfg.DATASET.CATEGORY, "pairs_left_out": left_out}, scores

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
        return format_category_table(summary)

    def name_settings(self, cfg) -> list[str]:
        return [cfg.EVAL.PROTOCOL, cfg.EVAL.BY, cfg.EVAL.AVERAGE]

    def write_scores(self, stem, scores) -> None:
        write_scores(f"{stem}{PAIRS}", scores)
        write_predictions(f"{stem}{PREDICTIONS}", scores)

    def choose(self, data: PairDataset, count: int) -> list[int]:
        return choose_pairs(data, count)

    def draw(self, cfg, method, data, positions, title, device):
        return draw_pairs(cfg, method, data, positions, title, device)

    def build_preview(self, cfg, device) -> Preview:
        return Preview(cfg, device)


def build_protocol(cfg) -> Protocol:
    """How the config wants predictions made and judged."""
    section = cfg.EVAL
    return Protocol(section.LOCALISERS, section.ALPHAS, section.BETA, section.SIGMA, section.PROTOCOL, section.WINDOW)
