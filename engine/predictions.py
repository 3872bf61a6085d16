"""Predictions that somebody else has made, as scores: through the same evaluator as a method's own.

A table has a row per keypoint: pair_id, keypoint_id (or keypoint_index, from 0, in the order of the pair's annotation),
x, y in px of the target image as it is on disk, and perhaps score. CSV or JSON Lines.
"""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
import torch

from dataset import Benchmark
from dataset.pair_dataset import PairDataset, collate
from engine.result import ResultError, read_cells, read_predictions, write_csv
from utils.frame import Pad
from utils.pck import POINT, PCKEvaluator
from utils.progress import progress

LOCALISER = "prediction"  # what they are called in tables of scores
COLUMNS = ("pair_id", "keypoint_id", "x", "y")
RELEASE_SIDE = 840  # px of the square in which GeoAware-SC predicts
KEYPOINT, OPTIONAL = ("keypoint_id", "keypoint_index"), ("score",)
Points = dict[str, np.ndarray]  # pair id -> (N, 2), px of the original target
PLAIN = {  # what arrays and numbers of numpy are pickled by
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *(("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")),
}


def read_points(path: Path, benchmark: Benchmark, localiser: str = "") -> Points:
    """The predictions in a file of any of the formats; ResultError names the line, or the pair, that is wrong.

    .csv: a row per keypoint, or this project's own _predictions.csv, of which `localiser` is read; .jsonl: likewise, an
    object a line; .json, .pkl: the results of GeoAware-SC.
    """
    if path.suffix in (".json", ".pkl"):
        return convert_release(read_release(path), benchmark, str(path))
    if path.suffix == ".csv" and localiser:
        table = read_predictions(path)
        if POINT + localiser not in table:
            known = ", ".join(name.removeprefix(POINT) for name in table if name.startswith(POINT))
            raise ResultError(f"{path}: no predictions of {localiser!r}; it has those of {known}")
        return require_all(dict(zip(table["pair_id"], table[POINT + localiser], strict=True)), benchmark, str(path))
    rows = {".csv": read_csv, ".jsonl": read_jsonl}.get(path.suffix)
    if rows is None:
        raise ResultError(f"{path}: its name must end in .csv, .jsonl, .json or .pkl")
    return place_rows(rows(path), benchmark, str(path))


def read_csv(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(file and line, cells) of every row."""
    table = read_cells(path)
    check_columns(list(table), f"{path}, line 1")
    for line, row in zip(table.index, table.to_dict("records"), strict=True):
        yield f"{path}, line {line}", row


def read_jsonl(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(file and line, object) of every line that is not empty."""
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ResultError(f"{path}, line {number}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise ResultError(f"{path}, line {number}: {line[:40]!r} is no object")
        check_columns(list(row), f"{path}, line {number}")
        yield f"{path}, line {number}", row


def check_columns(names: list[str], where: str) -> None:
    """ResultError unless there are the columns of a row per keypoint, each once."""
    keypoint = [name for name in KEYPOINT if name in names]
    missing = [name for name in COLUMNS if name not in names and name not in KEYPOINT]
    if missing or len(keypoint) != 1:
        wanted = "pair_id, keypoint_id (or keypoint_index), x, y"
        raise ResultError(f"{where}: the columns are {', '.join(names) or 'none'}; there must be {wanted}")
    if unknown := set(names) - {*COLUMNS, *KEYPOINT, *OPTIONAL}:
        raise ResultError(f"{where}: unknown column {min(unknown)!r}")


def place_rows(rows: Iterator[tuple[str, Mapping[str, Any]]], benchmark: Benchmark, what: str) -> Points:
    """The points of rows, each in its pair and place. Rows that are doubled, unknown or no numbers are refused."""
    ids = {record.pair_id: record.kps_ids for record in benchmark}
    points = {name: np.full((len(kps), 2), np.nan) for name, kps in ids.items()}
    seen: dict[tuple[str, int], str] = {}
    for where, row in rows:
        pair = str(row["pair_id"])
        if pair not in ids:
            raise ResultError(f"{where}: pair {pair!r} is not in {benchmark.name} {benchmark.split}")
        place = _find_place(row, ids[pair], where)
        if (pair, place) in seen:
            which = f"keypoint {ids[pair][place]} of pair {pair!r}"
            raise ResultError(f"{where}: {which} stands in {seen[pair, place]} already")
        seen[pair, place] = where.rpartition(", ")[2]
        points[pair][place] = [_parse(row[axis], where, axis) for axis in "xy"]
        if row.get("score", "") not in ("", None):
            _parse(row["score"], where, "score")
    return require_all(points, benchmark, what)


def _find_place(row: Mapping[str, Any], ids: tuple[str, ...], where: str) -> int:
    """Of the keypoint of a row among those of its pair."""
    key = next(name for name in KEYPOINT if name in row)
    value = str(row[key]).strip()
    known = ids if key == "keypoint_id" else tuple(map(str, range(len(ids))))
    if value not in known:
        raise ResultError(f"{where}: {key} {value!r} is none of the pair's: {', '.join(known) or 'it has none'}")
    return known.index(value)


def _parse(value: Any, where: str, column: str) -> float:
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ResultError(f"{where}: {column} is {value!r}, not a number")
    return number


def require_all(points: Points, benchmark: Benchmark, what: str) -> Points:
    """The points of the benchmark's pairs; ResultError if one is missing or there are too many of a pair."""
    missing = []
    for record in benchmark:
        found = points.get(record.pair_id)
        if found is None:
            missing += [(record.pair_id, name) for name in record.kps_ids]
        elif len(found) != len(record.kps_ids):
            raise ResultError(f"{what}: pair {record.pair_id!r} has {len(found)} points, not {len(record.kps_ids)}")
        else:
            absent = np.flatnonzero(~np.isfinite(found).all(axis=1))
            missing += [(record.pair_id, record.kps_ids[place]) for place in absent]
    if missing:
        pair, name = missing[0]
        which = f"{len(missing)} rows are missing, the first for keypoint {name} of pair {pair!r}"
        raise ResultError(f"{what}: {which}; --template writes a file with all of them")
    return points


def write_template(path: Path, benchmark: Benchmark) -> int:
    """A row, without x and y, for every keypoint of every pair; their number."""
    rows = [(record.pair_id, name, "", "") for record in benchmark for name in record.kps_ids]
    write_csv(path, pd.DataFrame(rows, columns=COLUMNS))
    return len(rows)


# ---- GeoAware-SC's results -----------------------------------------------------------------------------------------


class PlainUnpickler(pickle.Unpickler):
    """Of lists, dicts, strings, numbers and numpy's arrays; anything else is refused before it is made."""

    def find_class(self, module: str, name: str):
        if (module, name) not in PLAIN:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which is no plain data")
        return super().find_class(module, name)


def read_release(path: Path) -> list[dict[str, Any]]:
    """{src_fn, trg_fn, src_kpts_pred (rows of x, y, by keypoint id), resize_resolution} for each pair."""
    try:
        if path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
        else:
            with open(path, "rb") as file:
                content = PlainUnpickler(file).load()
    except OSError:
        raise
    except Exception as error:  # a damaged pickle raises whatever its bytes lead to
        raise ResultError(f"{path} cannot be read as results of GeoAware-SC ({error})") from error
    wanted = ("src_fn", "trg_fn", "src_kpts_pred", "resize_resolution")
    rows = content if isinstance(content, list) else [None]
    if not all(isinstance(row, dict) and all(key in row for key in wanted) for row in rows):
        raise ResultError(f"{path} is no list of objects with {', '.join(wanted)}")
    return content


def convert_release(rows: list[dict[str, Any]], benchmark: Benchmark, what: str) -> Points:
    """Predictions in the padded square of resize_resolution, a row per keypoint id -> px of the targets."""
    places = {(_name(record.src.path), _name(record.trg.path)): record for record in benchmark}
    points: Points = {}
    for number, row in enumerate(rows, start=1):
        where = f"{what}, entry {number}"
        record = places.get(tuple(_name(str(row[key])) for key in ("src_fn", "trg_fn")))
        if record is None:
            which = f"{row['src_fn']} and {row['trg_fn']}"
            raise ResultError(f"{where}: {which} are no pair of {benchmark.name} {benchmark.split}")
        if record.pair_id in points:
            raise ResultError(f"{where}: the pair {record.pair_id!r} is there twice")
        side = int(_parse(np.ravel(row["resize_resolution"])[0], where, "resize_resolution"))
        try:
            found = np.asarray(row["src_kpts_pred"], dtype=np.float64)[[int(name) for name in record.kps_ids], :2]
        except (ValueError, IndexError, TypeError) as error:
            raise ResultError(f"{where}: src_kpts_pred has no x, y for each keypoint of the pair ({error})") from error
        points[record.pair_id] = Pad((side, side)).to_orig(torch.from_numpy(found), record.trg.size).numpy()
    return require_all(points, benchmark, what)


def _name(path: str) -> tuple[str, ...]:
    """Folder and name of an image's file."""
    return PurePosixPath(path.replace("\\", "/")).parts[-2:]


def to_release(points: Points, benchmark: Benchmark) -> list[dict[str, Any]]:
    """The inverse of `convert_release`, as JSON values."""
    rows = []
    for record in benchmark:
        table = np.zeros((benchmark.max_kps, 2))
        placed = Pad((RELEASE_SIDE,) * 2).to_px(torch.from_numpy(np.asarray(points[record.pair_id])), record.trg.size)
        table[[int(name) for name in record.kps_ids]] = placed.numpy()
        names = {"src_fn": "/".join(_name(record.src.path)), "trg_fn": "/".join(_name(record.trg.path))}
        rows.append({**names, "src_kpts_pred": table.tolist(), "resize_resolution": RELEASE_SIDE})
    return rows


# ---- scores --------------------------------------------------------------------------------------------------------


def score_points(
    points: Points,
    data: PairDataset,
    alphas: Sequence[float],
    protocol: str,
    inequality: str,
    localiser: str,
) -> pd.DataFrame:
    """The scores of predictions, under the name of a localiser."""
    evaluator = PCKEvaluator((localiser,), alphas, protocol, data.frame, inequality)
    for position in progress(range(len(data)), "scoring", unit="pair"):
        batch = collate([data[position]])
        given = points[batch["pair_id"][0]]
        padded = np.zeros((1, data.benchmark.max_kps, 2))
        padded[0, : len(given)] = given
        evaluator.update(batch, {localiser: data.frame.to_px(torch.from_numpy(padded), batch["trg_size"])})
    return evaluator.scores()
