"""The files of a test: tables as text, scores and predicted points as CSV, the summary as JSON.

A summary holds the digests of its tables: one that was cut, joined or edited is refused.
"""

import csv
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from engine.task import find_task
from utils.pck import AWARE, ERROR, IDENTITY, INEQUALITY, KAP, OTHER, PARTNER, POINT, TOTAL
from utils.store import StoreError, atomic_path, file_digest, read_json, write_json

COLUMN = 12  # characters; the width of the release's tables
RULE = "-" * 65
COUNTED = ("pairs", "pairs_without_points", "points")
TEXTS = ("pair_id", "category", "src_identifier", "trg_identifier", "protocol", INEQUALITY)  # columns of scores
PAIRS, PREDICTIONS = "_pairs.csv", "_predictions.csv"  # what follows the stem of a result


class ResultError(StoreError):
    """A result file that cannot be used; the message is one line with its name, and the line and column if known."""


# ---- tables as text ----------------------------------------------------------------------------------------------


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _columns(cells: Iterable[str], width: int) -> str:
    return "".join(f"{cell:<{width}}" for cell in cells)


def describe(summary: Mapping[str, Any]) -> str:
    """One line that says what the numbers of a summary are: rule, frame, by, average, number of pairs."""
    over = {"pair": "over all pairs", "category": "over categories"}[summary["average"]]
    chosen = summary.get("category", TOTAL)
    only = "" if chosen == TOTAL else f" of the category {chosen} alone"
    notes = [f"{summary['pairs_without_points']} more without keypoints"] if summary["pairs_without_points"] else []
    notes += [f"{summary['pairs_left_out']} more left out"] if summary.get("pairs_left_out") else []
    fitted = f" ({summary['fitted']})" if summary.get("fitted") else ""
    rule = f"PCK (error {summary.get(INEQUALITY, '<=')} alpha x threshold) in the {summary['protocol']} frame{fitted}"
    return (
        f"{rule}, per {summary['by']}, averaged {over}{only}: "
        f"{summary['pairs']} pairs, {summary['points']} keypoints" + (f" ({', '.join(notes)})" if notes else "")
    )


def format_overview(summary: Mapping[str, Any]) -> str:
    """Localisers x alphas over all pairs, under the line of `describe`; `summary` is of `pck.summarise`."""
    pck = summary["pck"]
    name_width = max([COLUMN, *(len(name) + 2 for name in pck)])
    alphas = next(iter(pck.values()), {})
    lines = [describe(summary), f"{'':<{name_width}}" + _columns((f"@{key}" for key in alphas), 10)]
    lines += [
        f"{name:<{name_width}}" + _columns((_percent(row[TOTAL]) for row in rows.values()), 10)
        for name, rows in pck.items()
    ]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def format_category_table(summary: Mapping[str, Any]) -> str:
    """The release's text layout: a block per localiser, categories and "all" as columns, alphas as rows.

    Columns are 12 characters wide (wider only if a category's name needs it). The last line is that of
    `describe`. There is no "all" where one category was chosen.
    """
    columns = [*sorted(summary["categories"]), *([TOTAL] if summary.get("category", TOTAL) == TOTAL else [])]
    width = max([COLUMN, *(len(name) + 1 for name in columns)])
    lines = []
    for localiser, rows in summary["pck"].items():
        lines += [f"{localiser}:", _columns(["", *columns], width)]
        lines += [_columns([key, *(_percent(row[name]) for name in columns)], width) for key, row in rows.items()]
        lines.append(RULE)
    return "\n".join([*lines, describe(summary)]) + "\n"


def format_metrics(metrics: Mapping[str, Any]) -> str:
    """What `measure` of engine.correspondence found beyond PCK, a line per localiser and alpha; empty if nothing."""
    lines = []
    if aware := metrics.get("aware"):
        shares = (
            f"{_percent(aware['share_of_pairs'])} of the pairs, {_percent(aware['share_of_points'])} of the keypoints"
        )
        lines.append(f"geometry-aware: {aware['pairs']} pairs, {aware['points']} keypoints ({shares})")
    names = dict.fromkeys(
        key for rows in metrics.get("localisers", {}).values() for row in rows.values() for key in row
    )
    widths = {name: max(10, len(name) + 2) for name in names}
    first = max([COLUMN, *(len(localiser) + 2 for localiser in metrics.get("localisers", {}))])
    for localiser, rows in metrics.get("localisers", {}).items():
        lines.append(f"{localiser + ':':<{first}}" + "".join(f"{name:<{widths[name]}}" for name in names))
        for alpha, row in rows.items():
            cells = "".join(f"{_percent(row.get(name)):<{widths[name]}}" for name in names)
            lines.append(f"{'@' + alpha:<{first}}{cells}")
    return "\n".join(line.rstrip() for line in lines) + "\n" if lines else ""


# ---- scores ------------------------------------------------------------------------------------------------------


def write_scores(path: str | os.PathLike, scores: pd.DataFrame) -> None:
    """The columns of `utils.pck` but for the points, a row per pair; errors of a pair separated by spaces.

    Every float is the shortest decimal that reads back to the same float32.
    """
    table = scores.drop(columns=[name for name in scores if name.startswith(POINT)])
    for name in table:
        if _is_list(name):
            table[name] = [" ".join(map(str, values)) for values in table[name]]
    table["threshold"] = [str(value) for value in table["threshold"].to_numpy(np.float32)]
    write_csv(path, table)


def _is_list(column: str) -> bool:
    """Whether its cells are numbers separated by spaces."""
    return column == AWARE or column.startswith((ERROR, OTHER, PARTNER, KAP))


def write_predictions(path: str | os.PathLike, scores: pd.DataFrame) -> None:
    """A row per pair: index, pair_id and for each localiser "x y;x y;...", px of the original target."""
    table = scores[["index", "pair_id"]].copy()
    for name in scores:
        if name.startswith(POINT):
            cells = (";".join(f"{x:.2f} {y:.2f}" for x, y in points) for points in scores[name])
            table[name.removeprefix(POINT)] = list(cells)
    write_csv(path, table)


def write_csv(path: str | os.PathLike, table: pd.DataFrame) -> None:
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")


def read_scores(path: str | os.PathLike) -> pd.DataFrame:
    """The scores in a file of `write_scores`, from which every table can be computed again.

    Raises ResultError if the file is no such table, or is not as it was written with the summary beside it.
    """
    text = read_cells(path, (*IDENTITY, "threshold"), PAIRS)
    scores = text.copy()
    for name in text.columns.difference(TEXTS, sort=False):
        read = _read_lengths if _is_list(name) else float if name == "threshold" else int
        scores[name] = parse_column(path, text, name, read)
        if _is_list(name) and not name.startswith(KAP) and (scores[name].map(len) != scores["n_points"]).any():
            raise ResultError(f"{path}: the column {name} has not one number for each of n_points")
    scores["threshold"] = scores["threshold"].astype(np.float32)
    return scores.reset_index(drop=True)


def read_predictions(path: str | os.PathLike) -> pd.DataFrame:
    """A file of `write_predictions`: index, pair_id, and "point:LOCALISER" columns of (n, 2) arrays.

    Raises ResultError if the file is no such table, or is not as it was written with the summary beside it.
    """
    text = read_cells(path, ("index", "pair_id"), PREDICTIONS)
    table = text[["index", "pair_id"]].assign(index=parse_column(path, text, "index", int))
    for name in text.columns.difference(table.columns, sort=False):
        table[POINT + name] = parse_column(path, text, name, _read_points)
    return table.reset_index(drop=True)


def read_cells(path: str | os.PathLike, columns: Sequence[str] = (), suffix: str = "") -> pd.DataFrame:
    """The cells as text, by the line that each row ends on. All rows are as long as the header, which has `columns`.

    suffix: of the tables of a result, which are refused if the summary beside was not written with them.
    """
    rows: dict[int, list[str]] = {}
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, strict=True)  # pandas' own mends rows of another length
        try:
            header = [name.strip() for name in next(reader, [])]
            for row in reader:
                if len(row) != len(header):
                    raise csv.Error(f"{len(row)} cells, but {len(header)} in the header")
                rows[reader.line_num] = row
        except (csv.Error, UnicodeDecodeError) as error:
            raise ResultError(f"{path}, line {max(1, reader.line_num)}: {error}") from error
    if missing := [name for name in columns if name not in header]:
        raise ResultError(f"{path} is no such result of test.py: it has no column {', '.join(missing)}")
    if len(set(header)) < len(header):
        raise ResultError(f"{path}, line 1: a column is there twice")
    summary = Path(path).with_name(Path(path).name.removesuffix(suffix) + ".json")
    beside = suffix and Path(path).name.endswith(suffix) and summary.is_file()
    written = read_summary(summary).get("tables", {}).get(suffix) if beside else None
    if written and written != file_digest(path):
        raise ResultError(f"{path} is not the table that {summary.name} was written with (its digest differs)")
    return pd.DataFrame.from_dict(rows, orient="index", columns=header, dtype=object)


def parse_column(path: str | os.PathLike, text: pd.DataFrame, column: str, read: Callable[[str], Any]) -> list:
    """What `read` makes of a column's cells; ResultError for the first for which it raises ValueError."""
    values = []
    for line, cell in text[column].items():
        try:
            values.append(read(cell))
        except ValueError:
            cell = cell if len(cell) <= 40 else f"{cell[:37]}..."
            raise ResultError(f"{path}, line {line}, column {column}: {cell!r} cannot be read") from None
    return values


def _read_lengths(cell: str) -> np.ndarray:
    """Float32 numbers, separated by spaces."""
    with np.errstate(over="ignore"):
        values = np.array([float(word) for word in cell.split()]).astype(np.float32)
    if not (values >= 0).all():
        raise ValueError("negative, or no number")
    return values


def _read_points(cell: str) -> np.ndarray:
    """(n, 2) finite numbers."""
    points = [[float(value) for value in point.split(" ")] for point in cell.split(";") if point]
    values = np.array(points, dtype=np.float64).reshape(len(points), 2)
    if not np.isfinite(values).all():
        raise ValueError("not finite")
    return values


# ---- the summary -------------------------------------------------------------------------------------------------


def write_summary(
    path: str | os.PathLike,
    summary: Mapping[str, Any],
    config: Mapping[str, Any],
    provenance: Mapping[str, Any],
    made_by: Mapping[str, Any] | None = None,  # of engine.identity
) -> None:
    """Write what was measured, the config, the machine, what decides the numbers, and digests of the tables beside."""
    content = {"summary": summary, "config": config, "provenance": provenance, "made_by": made_by or {}}
    suffixes = find_task(summary.get("task", "correspondence")).files
    tables = {suffix: f"{path}".removesuffix(".json") + suffix for suffix in suffixes}
    content["tables"] = {suffix: file_digest(table) for suffix, table in tables.items() if os.path.isfile(table)}
    write_json(path, content)


def read_summary(path: str | os.PathLike) -> dict[str, Any]:
    """A file of `write_summary`; ResultError if it is something else."""
    content = read_json(Path(path), ResultError, "delete it, or run test.py again")
    try:
        summary = content["summary"]
        right = find_task(summary.get("task", "correspondence")).is_sound(summary)
        right &= isinstance(content["config"], dict)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ResultError(f"{path} is no summary of test.py ({type(error).__name__}: {error})") from error
    if not right:
        raise ResultError(f"{path} is no summary of test.py: a value is out of its range")
    return content
