"""Items of texts and images, judged by whether the true candidate is ranked first, as a task of the engine."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator

from dataset.item_dataset import ItemDataset
from dataset.ranking import ItemRecord, RankingBenchmark
from engine.process import gather_scores
from engine.result import parse_column, read_cells, write_csv
from engine.task import Summary, Task
from engine.transfer import build_loader, move_batch
from utils.draw import plot_item
from utils.frame import build_frame
from utils.image import read_image
from utils.noise import identifier_seed
from utils.pck import PredictionError
from utils.progress import progress
from utils.ranking import IDENTITY, TIES, TOTAL, find_best, margins, summarise

ITEMS = "_items.csv"  # what follows the stem of a result
SCORE = "score"


class Ranking(Task):
    """Candidates are scored; the true one should have the highest score."""

    name, unit, key = "ranking", "item", "ranking"
    files = (ITEMS,)
    nothing = "no validation item could be judged"

    def open(self, cfg, benchmark: RankingBenchmark) -> ItemDataset:
        benchmark = benchmark.share(cfg.DATASET.FEW_SHOT)
        return ItemDataset(benchmark, build_frame(cfg.DATASET.FRAME, cfg.DATASET.IMAGE_SIZE))

    def digest_records(self, benchmark: RankingBenchmark) -> str:
        records = hashlib.sha256(f"{benchmark.name} {benchmark.both_ways}".encode())
        for item in benchmark:
            words = item.item_id, item.category, item.texts, [ref.identifier for ref in item.images]
            records.update(repr(words).encode())
        return records.hexdigest()[:16]

    @torch.no_grad()
    def evaluate(self, cfg, method, data: ItemDataset, accelerator: Accelerator):
        share = share_batches(len(data), method.joint, cfg.EVAL.BATCH_SIZE, accelerator)
        count, rows = sum(map(len, share)), []
        with progress(None, "evaluating", count, shown=accelerator.is_main_process, unit="item") as bar:
            for batch in build_loader(data, cfg.DATASET.NUM_WORKERS, batches=share):
                seeds = torch.tensor(
                    [[identifier_seed(cfg.SEED, name) for name in row] for row in batch["identifiers"]]
                )
                found = method.rank(move_batch(batch, accelerator.device), seeds)
                rows += list_rows(batch, found, data.benchmark.both_ways)
                bar.update(len(seeds))
        scores = gather_scores(pd.DataFrame(rows, columns=None if rows else IDENTITY))
        columns = [name for name in scores if name not in IDENTITY]
        summary = {"task": self.name, "items": len(scores), "category": cfg.DATASET.CATEGORY}
        return {**summary, self.key: summarise(scores, columns)}, scores

    def is_sound(self, summary: Summary) -> bool:
        cells = [cell for measures in summary[self.key].values() for row in measures.values() for cell in row.values()]
        whole = all(TOTAL in row for measures in summary[self.key].values() for row in measures.values())
        return whole and summary["items"] >= 0 and all(0 <= cell[way] <= 1 for cell in cells for way in TIES)

    def find_score(self, cfg, summary: Summary) -> float | None:
        measures = summary[self.key].get(SCORE, {})
        return measures[find_best(measures)][TOTAL]["strict"] if measures else None

    def name_score(self, cfg) -> str:
        return "R@1, or the group score"

    def list_numbers(self, summary: Summary) -> dict[str, float]:
        return {
            f"{column}/{measure}": row[TOTAL]["strict"]
            for column, measures in summary[self.key].items()
            for measure, row in measures.items()
        }

    def format_overview(self, summary: Summary) -> str:
        return format_table(summary, [TOTAL])

    def format_table(self, summary: Summary) -> str:
        return format_table(summary)

    def write_scores(self, stem: str | Path, scores: pd.DataFrame) -> None:
        write_items(f"{stem}{ITEMS}", scores)

    def read_scores(self, stem: str | Path) -> pd.DataFrame:
        return read_items(f"{stem}{ITEMS}")

    def draw(self, cfg, method, data, scores, count, title, device, validating=False):
        """The items that went wrong most: their images, and their candidates by score."""
        worst = np.argsort(margins(scores, SCORE), kind="stable")[:count]
        rows = scores.iloc[worst].to_dict("records")
        return [{"item": draw_item(data.benchmark[row["index"]], row[SCORE], row["both_ways"])} for row in rows]


def draw_item(item: ItemRecord, scores: np.ndarray, both_ways: bool):
    """A figure of the images of an item and the scores of its candidates."""
    images = [read_image(ref.path) for ref in item.images]
    numbers = [f" | image {n + 1}" for n in range(len(images))] if len(images) > 1 else [""]
    names = [text + number for text in item.texts for number in numbers]
    true = np.eye(len(images), dtype=bool).ravel() if both_ways else np.arange(len(names)) == 0
    return plot_item([(image.size, image.image) for image in images], names, scores, true)


def share_batches(count: int, joint: int, batch_size: int, accelerator: Accelerator) -> list[range]:
    """This process's batches of positions: of `joint` items that belong together, or of at most `batch_size`."""
    size = joint if joint > 1 else batch_size
    batches = [range(first, min(first + size, count)) for first in range(0, count, size)]
    rank, world = accelerator.process_index, accelerator.num_processes
    return batches[len(batches) * rank // world : len(batches) * (rank + 1) // world]


def list_rows(batch: dict, found: dict[str, torch.Tensor], both_ways: bool) -> list[dict]:
    """A row per item of a batch; PredictionError for a score that is no number."""
    values = {name: value.double().cpu().numpy() for name, value in found.items()}
    rows = []
    for b, name in enumerate(batch["item_id"]):
        if not all(np.isfinite(value[b]).all() for value in values.values()):
            raise PredictionError(f"item {name!r}: a score is not finite, so that nothing can be ranked")
        sizes = {"n_texts": len(batch["texts"][b]), "n_images": len(batch["identifiers"][b])}
        rows.append(
            {"index": int(batch["index"][b]), "item_id": name, "category": batch["category"][b]}
            | {**sizes, "both_ways": int(both_ways)}
            | {column: value[b] for column, value in values.items()}
        )
    return rows


def format_table(summary: Summary, categories: Sequence[str] = ()) -> str:
    """A line for each way of scoring, measure and kind of item: strict with its interval, random, release."""
    lines = [f"{'':<12}{'':<8}{'':<16}{'strict':<10}{'95 % interval':<20}{'ties random':<13}as the release"]
    for column, measures in summary["ranking"].items():
        for measure, row in measures.items():
            for category in categories or row:
                cell = row[category]
                bounds = f"[{cell['low']:.2%}, {cell['high']:.2%}]"
                shares = f"{cell['strict']:<10.2%}{bounds:<20}{cell['random']:<13.2%}{cell['release']:.2%}"
                lines.append(f"{column:<12}{measure:<8}{category:<16}{shares}")
    chosen = summary.get("category", TOTAL)
    lines.append(f"{summary['items']} items" + (f" of the kind {chosen} alone" if chosen != TOTAL else ""))
    return "\n".join(lines) + "\n"


def write_items(path: str | Path, scores: pd.DataFrame) -> None:
    """A row per item: the columns of `utils.ranking`, the scores of the candidates separated by spaces."""
    table = scores.copy()
    for name in scores.columns.difference(IDENTITY):
        table[name] = [" ".join(repr(float(value)) for value in values) for values in table[name]]
    write_csv(path, table)


def read_items(path: str | Path) -> pd.DataFrame:
    """The scores in a file of `write_items`; ResultError for one that was cut or edited."""
    text = read_cells(path, IDENTITY, ITEMS)
    table = text.copy()
    for name in text.columns.difference(("item_id", "category"), sort=False):
        table[name] = parse_column(path, text, name, int if name in IDENTITY else _read_scores)
    return table.reset_index(drop=True)


def _read_scores(cell: str) -> np.ndarray:
    """Finite numbers, separated by spaces."""
    values = np.array([float(word) for word in cell.split()])
    if not np.isfinite(values).all():
        raise ValueError("not finite")
    return values
