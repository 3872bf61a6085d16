"""Results of test.py as one page that sorts and filters the pairs and shows what was predicted."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from glob import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from config import ConfigError, change_config, load_config
from dataset import BENCHMARKS, MissingDataError
from dataset.pair_dataset import PairDataset
from engine.build import build_pairs
from engine.picture import MAPS
from engine.ranking import ITEMS
from engine.result import PAIRS, PREDICTIONS, read_predictions, read_scores
from utils.pck import ERROR, POINT
from utils.progress import progress
from utils.store import digest, write_text

SCORES = (PAIRS, ITEMS)  # what the names of tables of scores end in
TEMPLATE = Path(__file__).parent / "static" / "viewer.html"


@dataclass(frozen=True)
class Result:
    """The files of one run of test.py."""

    stem: Path

    @property
    def name(self) -> str:
        """The prompt, or the method if it takes none; and the category, if only one was tested."""
        category = self.config.DATASET.CATEGORY
        return self.stem.parent.name + ("" if category == "all" else f", {category} only")

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

    @cached_property
    def scores(self) -> pd.DataFrame:
        """By pair id, with the predicted points if they are there."""
        scores, path = read_scores(f"{self.stem}{PAIRS}"), Path(f"{self.stem}{PREDICTIONS}")
        if path.is_file():
            scores = scores.merge(read_predictions(path), how="left", on=["index", "pair_id"])
        return scores.set_index("pair_id", drop=False)


def find_results(places: Iterable[str]) -> list[Result]:
    """The results in folders (at any depth) and of files named as SCORES. Raises ConfigError if a place has none."""
    results = []
    for place in map(Path, places):
        files = sorted(place.rglob("*.csv")) if place.is_dir() else [place]
        stems = [find_stem(file) for file in files if file.is_file() and file.name.endswith(SCORES)]
        if not stems:
            raise ConfigError(f"{place}: no *{' or *'.join(SCORES)} there; test.py writes them beside the prompts")
        results += map(Result, stems)
    return list(dict.fromkeys(results))


def build_pages(results: Sequence[Result], localisers: Sequence[str], data_root: str | None = None) -> list[Page]:
    """A page for each data set and split. data_root: where the data sets are now, if not where they were tested."""
    from app.ranking import RankingPage

    splits = dict.fromkeys(result.split for result in results)
    kinds = {"correspondence": Page, "ranking": RankingPage}
    return [
        kinds[BENCHMARKS[split[0]].task]([r for r in results if r.split == split], localisers, data_root)
        for split in splits
    ]


def find_stem(file: Path) -> Path:
    """Of a result's table of scores."""
    return file.with_name(next(file.name.removesuffix(end) for end in SCORES if file.name.endswith(end)))


class Page:
    """The results of one split, side by side."""

    template = TEMPLATE

    def __init__(self, results: Sequence[Result], localisers: Sequence[str], data_root: str | None) -> None:
        self._start(results, data_root)
        columns = set.intersection(*(set(result.scores) for result in results))
        self.localisers = [name for name in localisers if ERROR + name in columns]
        self.alphas = _sort_alphas(columns, self.localisers)
        self._content = self._build()

    def _start(self, results: Sequence[Result], data_root: str | None) -> None:
        self.results, self.data_root = results, data_root
        self.name = "_".join(results[0].split)
        self.images: list[str] = []  # paths, by the number that the page knows them by
        self.missing = ""  # why there are no pictures
        self._numbers: dict[str, int] = {}

    def write(self, path: Path) -> None:
        """A file whose pictures are read from where they are when a pair is looked at."""
        folder = path.resolve().parent
        urls = [quote(os.path.relpath(image, folder).replace(os.sep, "/")) for image in self.images]
        write_text(path, self.render(urls))

    def render(self, urls: Sequence[str]) -> str:
        """The page, with a URL for each image."""
        text = json.dumps(self._content | {"images": list(urls)}, separators=(",", ":"), allow_nan=False)
        return self.template.read_text(encoding="utf-8").replace("{{data}}", text.replace("<", "\\u003c"))

    def _build(self) -> dict[str, Any]:
        tables = [result.scores for result in self.results]
        known = pd.concat(
            [table[["pair_id", "category", "n_points", "protocol"]] for table in tables], ignore_index=True
        )
        self._refuse_other_annotations(known)
        known = known.drop_duplicates("pair_id")
        dataset, positions = self._open_dataset()
        pairs = progress(known.itertuples(), f"reading the pairs of {self.name}", len(known), unit="pair")
        return {
            "title": f"{self.results[0].split[0]}, {self.results[0].split[1]} split",
            "missing": self.missing,
            "localisers": self.localisers,
            "alphas": self.alphas,
            "pairs": [self._describe_pair(row, dataset, positions.get(row.pair_id)) for row in pairs],
            "methods": [
                self._describe_method(name, table, list(known["pair_id"]), result.stem)
                for name, table, result in zip(self._name_methods(), tables, self.results, strict=True)
            ],
        }

    def _refuse_other_annotations(self, known: pd.DataFrame) -> None:
        """A pair must have the same keypoints in every result."""
        different = known.groupby("pair_id")[["n_points", "category"]].nunique().max(axis=1) > 1
        if different.any():
            stems = ", ".join(result.stem.name for result in self.results)
            raise ConfigError(f"pair {different.idxmax()!r} has other annotations in one of {stems}: test them again")

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
        names = (getattr(record, "pair_id", None) or record.item_id for record in dataset.benchmark)
        return dataset, {name: position for position, name in enumerate(names)}

    def _describe_pair(self, row: Any, dataset: PairDataset | None, position: int | None) -> dict[str, Any]:
        pair = {"id": row.pair_id, "category": row.category, "n": row.n_points}
        if dataset is None or position is None:
            return pair
        record = dataset.benchmark[position]
        if len(record.trg_kps) != row.n_points:  # the annotations have changed since
            return pair
        sides = {"src": (record.src, record.src_kps), "trg": (record.trg, record.trg_kps)}
        return pair | {side: self._describe_image(ref, kps) for side, (ref, kps) in sides.items()}

    def _number(self, path: str) -> int:
        """What the page knows an image by."""
        number = self._numbers.setdefault(path, len(self.images))
        if number == len(self.images):
            self.images.append(path)
        return number

    def _describe_image(self, ref, kps: np.ndarray) -> dict[str, Any]:
        number = self._number(ref.path)
        height, width = ref.size
        return {"image": number, "w": width, "h": height, "flip": int(ref.flip), "kps": _tenths(kps)}

    def _find_maps(self, stem: Path, known: Sequence[str]) -> list[list[int] | None]:
        """For each known pair the pictures of its points' maps, if test.py has drawn them."""
        found: dict[str, list[int]] = {}
        for path in sorted(stem.parent.glob(f"{escape(stem.name)}_*_{MAPS}_*.png")):
            found.setdefault(path.stem.split("_")[-2], []).append(self._number(str(path)))
        return [found.get(digest(name)[:8]) for name in known]

    def _describe_method(self, name: str, table: pd.DataFrame, known: Sequence[str], stem: Path) -> dict[str, Any]:
        """For each known pair, null if it was not tested: {localiser: hits at each alpha}, and where points were kept
        {localiser: [points, px of the original target; errors as a share of PCK's threshold]}."""
        rows = table.to_dict("index")
        hits, found = [], []
        for row in map(rows.get, known):
            hits.append(row and {n: [row[f"{n}@{alpha}"] for alpha in self.alphas] for n in self.localisers})
            shown = [n for n in self.localisers if row and len(_points_of(row, n)) == row["n_points"]]
            scale = max(float(row["threshold"]), 1e-9) if row else 1.0
            shares = {n: np.round(row[ERROR + n].astype(float) / scale, 6).tolist() for n in shown}
            found.append({n: [_tenths(row[POINT + n]), shares[n]] for n in shown} or None)
        return {"name": name, "hits": hits, "found": found, "maps": self._find_maps(stem, known)}


def _points_of(row: dict[str, Any], localiser: str) -> Sequence:
    """The points that were kept; empty if there are none."""
    points = row.get(POINT + localiser)
    return points if isinstance(points, np.ndarray) else ()


def _sort_alphas(columns: Iterable[str], localisers: Sequence[str]) -> list[str]:
    """The alphas of the hits that all results have of these localisers."""
    found = [{name.rpartition("@")[2] for name in columns if name.rpartition("@")[0] == n} for n in localisers]
    return sorted(set.intersection(*found), key=float) if found else []


def _tenths(points: Any) -> list[float]:
    """x, y, x, y, ... with one decimal."""
    return np.round(np.asarray(points, dtype=np.float64), 1).ravel().tolist()
