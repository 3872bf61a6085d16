"""Results of test.py as one page that sorts and filters the pairs, or items, and shows what was predicted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from app.static_page import StaticPage
from config import ConfigError, change_config, load_config
from dataset import BENCHMARKS, MissingDataError
from engine.build import build_pairs
from engine.picture import MAPS
from engine.ranking import ITEMS, read_items
from engine.result import PAIRS, PREDICTIONS, read_predictions, read_scores
from utils.pck import ERROR, POINT
from utils.progress import progress
from utils.ranking import IDENTITY
from utils.store import digest

SCORES = (PAIRS, ITEMS)  # what the names of tables of scores end in
DIGITS = 5  # of a score of an item on the page


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
        """Of pairs, by pair id, with the predicted points if they are there."""
        scores, path = read_scores(f"{self.stem}{PAIRS}"), Path(f"{self.stem}{PREDICTIONS}")
        if path.is_file():
            scores = scores.merge(read_predictions(path), how="left", on=["index", "pair_id"])
        return scores.set_index("pair_id", drop=False)


def find_results(places: Iterable[str]) -> list[Result]:
    """The results in folders (at any depth) and of files named as SCORES. Raises ConfigError if a place has none."""
    results = []
    for place in map(Path, places):
        files = [file for file in (sorted(place.rglob("*.csv")) if place.is_dir() else [place]) if file.is_file()]
        found = [Result(f.with_name(f.name.removesuffix(end))) for f in files for end in SCORES if f.name.endswith(end)]
        if not found:
            raise ConfigError(f"{place}: no *{' or *'.join(SCORES)} there; test.py writes them beside the prompts")
        results += found
    return list(dict.fromkeys(results))


def build_pages(results: Sequence[Result], localisers: Sequence[str], data_root: str | None = None) -> list[ResultPage]:
    """A page for each data set and split. data_root: where the data sets are now, if not where they were tested."""
    pages = []
    for split in dict.fromkeys(result.split for result in results):
        same = [result for result in results if result.split == split]
        pairs = BENCHMARKS[split[0]].task == "correspondence"
        pages.append(PairPage(same, localisers, data_root) if pairs else ItemPage(same, data_root))
    return pages


class ResultPage(StaticPage):
    """The results of one split, side by side."""

    def __init__(self, results: Sequence[Result], data_root: str | None) -> None:
        self.results, self.name, self.images = results, "_".join(results[0].split), []
        self._numbers: dict[str, int] = {}  # of the images
        self.missing = ""  # why there are no pictures
        self._records = self._open_records(data_root)
        self._content = {"title": "{}, {} split".format(*results[0].split), "missing": self.missing, **self._build()}

    def describe(self, urls: Sequence[str], served: bool) -> dict[str, Any]:
        return self._content | {"images": list(urls)}

    def _build(self) -> dict[str, Any]:
        """What is shown besides title and images."""
        raise NotImplementedError

    def _open_records(self, data_root: str | None) -> dict[str, Any]:
        """The records of the whole split by their ids; none without the data set."""
        tested = self.results[0].config
        cfg = change_config(tested, {"DATASET.CATEGORY": "all", "DATASET.ROOT": data_root or tested.DATASET.ROOT})
        try:
            benchmark = build_pairs(cfg, cfg.TEST.SPLIT).benchmark
        except MissingDataError as error:
            self.missing = f"No pictures: {str(error).splitlines()[0]} (--data_root says where the data sets are)"
            return {}
        return {getattr(record, "pair_id", None) or record.item_id: record for record in benchmark}

    def _name_methods(self) -> list[str]:
        """Prompt names; where two are equal, the settings are added."""
        names = [result.name for result in self.results]
        settings = [f"{r.name} t{r.config.TEST.TIMESTEP} x{r.config.TEST.ENSEMBLE}" for r in self.results]
        longer = [s if names.count(n) > 1 else n for n, s in zip(names, settings, strict=True)]
        stems = [result.stem.name for result in self.results]
        return [s if longer.count(n) > 1 else n for n, s in zip(longer, stems, strict=True)]

    def _number(self, path: str) -> int:
        """What the page knows an image by."""
        number = self._numbers.setdefault(path, len(self.images))
        if number == len(self.images):
            self.images.append(path)
        return number


class PairPage(ResultPage):
    """Pairs of images, with the points that were predicted and the truth."""

    template = "viewer.html"

    def __init__(self, results: Sequence[Result], localisers: Sequence[str], data_root: str | None) -> None:
        columns = set.intersection(*(set(result.scores) for result in results))
        self.localisers = [name for name in localisers if ERROR + name in columns]
        self.alphas = _sort_alphas(columns, self.localisers)
        super().__init__(results, data_root)

    def _build(self) -> dict[str, Any]:
        tables = [result.scores[["pair_id", "category", "n_points"]] for result in self.results]
        known = pd.concat(tables, ignore_index=True)
        self._refuse_other_annotations(known)
        known = known.drop_duplicates("pair_id")
        pairs = progress(known.itertuples(), f"reading the pairs of {self.name}", len(known), unit="pair")
        return {
            "localisers": self.localisers,
            "alphas": self.alphas,
            "pairs": [self._describe_pair(row, self._records.get(row.pair_id)) for row in pairs],
            "methods": [
                self._describe_method(name, result, list(known["pair_id"]))
                for name, result in zip(self._name_methods(), self.results, strict=True)
            ],
        }

    def _refuse_other_annotations(self, known: pd.DataFrame) -> None:
        """A pair must have the same keypoints in every result."""
        different = known.groupby("pair_id")[["n_points", "category"]].nunique().max(axis=1) > 1
        if different.any():
            stems = ", ".join(result.stem.name for result in self.results)
            raise ConfigError(f"pair {different.idxmax()!r} has other annotations in one of {stems}: test them again")

    def _describe_pair(self, row: Any, record: Any) -> dict[str, Any]:
        pair = {"id": row.pair_id, "category": row.category, "n": row.n_points}
        if record is None or len(record.trg_kps) != row.n_points:  # the annotations have changed since
            return pair
        sides = {"src": (record.src, record.src_kps), "trg": (record.trg, record.trg_kps)}
        return pair | {side: self._describe_image(ref, kps) for side, (ref, kps) in sides.items()}

    def _describe_image(self, ref, kps: np.ndarray) -> dict[str, Any]:
        height, width = ref.size
        return {"image": self._number(ref.path), "w": width, "h": height, "flip": int(ref.flip), "kps": _tenths(kps)}

    def _find_maps(self, stem: Path, known: Sequence[str]) -> list[list[int] | None]:
        """For each known pair the pictures of its points' maps, if test.py has drawn them."""
        found: dict[str, list[int]] = {}
        for path in sorted(stem.parent.glob(f"{escape(stem.name)}_*_{MAPS}_*.png")):
            found.setdefault(path.stem.split("_")[-2], []).append(self._number(str(path)))
        return [found.get(digest(name)[:8]) for name in known]

    def _describe_method(self, name: str, result: Result, known: Sequence[str]) -> dict[str, Any]:
        """For each known pair, null if it was not tested: {localiser: hits at each alpha}, and where points were kept
        {localiser: [points, px of the original target; errors as a share of PCK's threshold]}."""
        rows = result.scores.to_dict("index")
        hits, found = [], []
        for row in map(rows.get, known):
            hits.append(row and {n: [row[f"{n}@{alpha}"] for alpha in self.alphas] for n in self.localisers})
            shown = [n for n in self.localisers if row and len(_points_of(row, n)) == row["n_points"]]
            scale = max(float(row["threshold"]), 1e-9) if row else 1.0
            shares = {n: np.round(row[ERROR + n].astype(float) / scale, 6).tolist() for n in shown}
            found.append({n: [_tenths(row[POINT + n]), shares[n]] for n in shown} or None)
        return {"name": name, "hits": hits, "found": found, "maps": self._find_maps(result.stem, known)}


class ItemPage(ResultPage):
    """Items of texts and images; those that went wrong most come first."""

    template = "ranking.html"

    def _build(self) -> dict[str, Any]:
        tables = [read_items(f"{result.stem}{ITEMS}") for result in self.results]
        known = pd.concat([table[[*IDENTITY[1:]]] for table in tables], ignore_index=True).drop_duplicates()
        if known["item_id"].duplicated().any():
            raise ConfigError(f"the results of {self.name} are of other items under the same names: test them again")
        return {
            "items": [self._describe_item(row, self._records.get(row.item_id)) for row in known.itertuples()],
            "methods": [
                {"name": name, "scores": _describe_scores(table, known["item_id"])}
                for name, table in zip(self._name_methods(), tables, strict=True)
            ],
        }

    def _describe_item(self, row: Any, record: Any) -> dict[str, Any]:
        item = {"id": row.item_id, "kind": row.category, "both": row.both_ways, "n": [row.n_texts, row.n_images]}
        if record is None or [len(record.texts), len(record.images)] != item["n"]:
            return item
        return item | {"texts": list(record.texts), "images": [self._number(ref.path) for ref in record.images]}


def _describe_scores(table: pd.DataFrame, known: Sequence[str]) -> list[dict[str, list[float]] | None]:
    """For each known item {way of scoring: score of each candidate}; null if it was not tested."""
    ways = [name for name in table if name not in IDENTITY]
    rows = {
        row["item_id"]: {way: np.round(row[way], DIGITS).tolist() for way in ways} for row in table.to_dict("records")
    }
    return [rows.get(name) for name in known]


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
