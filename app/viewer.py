"""Results of test.py as one page that sorts and filters the pairs and shows what was predicted."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from config import ConfigError, change_config, load_config
from dataset import MissingDataError
from dataset.pair_dataset import PairDataset
from engine.build import build_pairs
from engine.result import read_pairs_csv, read_predictions_csv, write_text
from utils.pck import Record

TEMPLATE = Path(__file__).parent / "static" / "viewer.html"
PAIRS = "_pairs.csv"


@dataclass(frozen=True)
class Result:
    """The files of one run of test.py."""

    stem: Path

    @property
    def name(self) -> str:
        return self.config.PROMPT.TYPE

    @cached_property
    def config(self) -> Any:
        path = Path(f"{self.stem}.yaml")
        if not path.is_file():
            raise ConfigError(f"{path} is missing; test.py writes it beside {self.stem.name}{PAIRS}")
        return load_config(str(path))

    @property
    def split(self) -> tuple[str, str]:
        """What was tested: two results can be compared if this is the same."""
        return self.config.DATASET.NAME, self.config.TEST.SPLIT

    def read_records(self) -> list[Record]:
        return read_pairs_csv(f"{self.stem}{PAIRS}")

    def read_predictions(self) -> dict[str, dict[str, list[list[float]]]]:
        """Empty if the result has none, being older than they are."""
        path = Path(f"{self.stem}_predictions.csv")
        return read_predictions_csv(path) if path.is_file() else {}


def find_results(places: Iterable[str]) -> list[Result]:
    """The results in folders (at any depth) and of *_pairs.csv files. Raises ConfigError if a place has none."""
    results = []
    for place in map(Path, places):
        files = sorted(place.rglob(f"*{PAIRS}")) if place.is_dir() else [place]
        files = [file for file in files if file.is_file() and file.name.endswith(PAIRS)]
        if not files:
            raise ConfigError(f"{place}: no *{PAIRS} there; test.py writes them beside the prompts")
        results += [Result(file.with_name(file.name.removesuffix(PAIRS))) for file in files]
    return list(dict.fromkeys(results))


def build_pages(results: Sequence[Result], localisers: Sequence[str], data_root: str | None = None) -> list[Page]:
    """A page for each data set and split. data_root: where the data sets are now, if not where they were tested."""
    splits = dict.fromkeys(result.split for result in results)
    return [Page([r for r in results if r.split == split], localisers, data_root) for split in splits]


class Page:
    """The results of one split, side by side."""

    def __init__(self, results: Sequence[Result], localisers: Sequence[str], data_root: str | None) -> None:
        self.results, self.localisers, self.data_root = results, localisers, data_root
        self.name = "_".join(results[0].split)
        self.images: list[str] = []  # paths, by the number that the page knows them by
        self.missing = ""  # why there are no pictures
        self._numbers: dict[str, int] = {}
        self._content = self._build()

    def write(self, path: Path) -> None:
        """A file whose pictures are read from where they are when a pair is looked at."""
        folder = path.resolve().parent
        urls = [quote(os.path.relpath(image, folder).replace(os.sep, "/")) for image in self.images]
        write_text(path, self.render(urls))

    def render(self, urls: Sequence[str]) -> str:
        """The page, with a URL for each image."""
        text = json.dumps(self._content | {"images": list(urls)}, separators=(",", ":"), allow_nan=False)
        return TEMPLATE.read_text(encoding="utf-8").replace("{{data}}", text.replace("<", "\\u003c"))

    def _build(self) -> dict[str, Any]:
        records = [{record["pair_id"]: record for record in result.read_records()} for result in self.results]
        known = list(dict.fromkeys(pair_id for by_id in records for pair_id in by_id))
        dataset, positions = self._open_dataset()
        first = {pair_id: next(by_id[pair_id] for by_id in records if pair_id in by_id) for pair_id in known}
        return {
            "title": f"{self.results[0].split[0]}, {self.results[0].split[1]} split",
            "missing": self.missing,
            "localisers": [n for n in self.localisers if all(n in r["hits"] for r in first.values())],
            "alphas": list(next(iter(next(iter(first.values()))["hits"].values()))) if first else [],
            "pairs": [self._describe_pair(first[i], dataset, positions.get(i)) for i in known],
            "methods": [
                self._describe_method(name, result, by_id, known)
                for name, result, by_id in zip(self._name_methods(), self.results, records, strict=True)
            ],
        }

    def _name_methods(self) -> list[str]:
        """Prompt names; where two are equal, the settings are added."""
        names = [result.name for result in self.results]
        settings = [f"{r.name} t{r.config.TEST.TIMESTEP} x{r.config.TEST.ENSEMBLE}" for r in self.results]
        longer = [s if names.count(n) > 1 else n for n, s in zip(names, settings, strict=True)]
        stems = [result.stem.name for result in self.results]
        return [s if longer.count(n) > 1 else n for n, s in zip(longer, stems, strict=True)]

    def _open_dataset(self) -> tuple[PairDataset | None, dict[str, int]]:
        """The pairs as they were tested, and the position of each by its id; None without the data set."""
        tested = self.results[0].config
        root = self.data_root or tested.DATASET.ROOT
        cfg = change_config(tested, {"DATASET.CATEGORY": "all", "DATASET.ROOT": root})
        try:
            dataset = build_pairs(cfg, cfg.TEST.SPLIT)
        except MissingDataError as error:
            self.missing = f"No pictures: {str(error).splitlines()[0]} (--data_root says where the data sets are)"
            return None, {}
        return dataset, {record.pair_id: position for position, record in enumerate(dataset.benchmark)}

    def _describe_pair(self, row: Record, dataset: PairDataset | None, position: int | None) -> dict[str, Any]:
        pair = {"id": row["pair_id"], "category": row["category"], "n": row["n_points"]}
        if dataset is None or position is None:
            return pair
        record = dataset.benchmark[position]
        sides = {"src": (record.src, record.src_kps), "trg": (record.trg, record.trg_kps)}
        return pair | {side: self._describe_image(ref, kps) for side, (ref, kps) in sides.items()}

    def _describe_image(self, ref, kps: np.ndarray) -> dict[str, Any]:
        number = self._numbers.setdefault(ref.path, len(self.images))
        if number == len(self.images):
            self.images.append(ref.path)
        height, width = ref.size
        return {"image": number, "w": width, "h": height, "flip": int(ref.flip), "kps": _tenths(kps)}

    def _describe_method(
        self, name: str, result: Result, by_id: dict[str, Record], known: Sequence[str]
    ) -> dict[str, Any]:
        predictions = result.read_predictions()
        found = [self._describe_points(by_id.get(pair_id, {}), predictions.get(pair_id, {})) for pair_id in known]
        hits = [by_id[i]["hits"] if i in by_id else None for i in known]
        return {
            "name": name,
            "hits": [h and {k: list(h[k].values()) for k in self.localisers if k in h} for h in hits],
            "found": found,
        }

    def _describe_points(self, record: Record, predictions: dict[str, list]) -> dict[str, list] | None:
        """{localiser: [points, px of the original target; errors as a share of PCK's threshold]}; None if not known."""
        errors = record.get("errors", {})
        names = [name for name in self.localisers if name in errors and name in predictions]
        return {name: [_tenths(predictions[name]), _share(errors[name], record["threshold"])] for name in names} or None


def _share(errors: Sequence[float], threshold: float) -> list[float]:
    """Errors over the threshold: right at alpha if at most alpha."""
    return np.round(np.asarray(errors) / max(threshold, 1e-9), 4).tolist()


def _tenths(points: Any) -> list[float]:
    """x, y, x, y, ... with one decimal."""
    return np.round(np.asarray(points, dtype=np.float64), 1).ravel().tolist()
