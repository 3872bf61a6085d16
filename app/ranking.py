"""Results of test.py on items of texts and images as one page: the items that went wrong most come first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from app.viewer import Page, Result
from config import ConfigError
from engine.ranking import ITEMS, read_items
from utils.ranking import IDENTITY

DIGITS = 5  # of a score on the page


class RankingPage(Page):
    """The results of one split, side by side."""

    template = Path(__file__).parent / "static" / "ranking.html"

    def __init__(self, results: Sequence[Result], localisers: Sequence[str], data_root: str | None) -> None:
        self._start(results, data_root)
        self._content = self._build()

    def _build(self) -> dict[str, Any]:
        tables = [read_items(f"{result.stem}{ITEMS}") for result in self.results]
        columns = list(IDENTITY[1:])
        known = pd.concat([table[columns] for table in tables], ignore_index=True).drop_duplicates()
        if known["item_id"].duplicated().any():
            raise ConfigError(f"the results of {self.name} are of other items under the same names: test them again")
        dataset, positions = self._open_dataset()
        records = {name: dataset.benchmark[position] for name, position in positions.items()} if dataset else {}
        return {
            "title": f"{self.results[0].split[0]}, {self.results[0].split[1]} split",
            "missing": self.missing,
            "items": [self._describe_item(row, records.get(row.item_id)) for row in known.itertuples()],
            "methods": [
                {"name": name, "scores": self._describe_scores(table, known["item_id"])}
                for name, table in zip(self._name_methods(), tables, strict=True)
            ],
        }

    def _describe_item(self, row: Any, record: Any) -> dict[str, Any]:
        item = {"id": row.item_id, "kind": row.category, "both": row.both_ways, "n": [row.n_texts, row.n_images]}
        if record is None or (len(record.texts), len(record.images)) != (row.n_texts, row.n_images):
            return item
        return item | {"texts": list(record.texts), "images": [self._number(ref.path) for ref in record.images]}

    def _describe_scores(self, table: pd.DataFrame, known: Sequence[str]) -> list[dict[str, list[float]] | None]:
        """For each known item {way of scoring: score of each candidate}; null if it was not tested."""
        ways = [name for name in table if name not in IDENTITY]
        rows = {
            row["item_id"]: {way: np.round(row[way], DIGITS).tolist() for way in ways}
            for row in table.to_dict("records")
        }
        return [rows.get(name) for name in known]
