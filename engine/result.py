"""Result tables as text, and the two files of an evaluation: one CSV row per pair and one JSON summary."""

import csv
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from utils.pck import Record, merge_records
from utils.store import atomic_path, write_text

COLUMN = 12  # characters; the width of the release's tables
RULE = "-" * 65
FIXED_COLUMNS = ("index", "pair_id", "category", "src_identifier", "trg_identifier", "protocol", "n_points")
FLAG_PREFIX = "flag:"
THRESHOLD = "threshold"  # px
ERROR_PREFIX = "error:"  # px of each keypoint, separated by spaces


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _columns(cells: Iterable[str], width: int) -> str:
    return "".join(f"{cell:<{width}}" for cell in cells)


def describe(summary: Mapping[str, Any]) -> str:
    """One line that says what the numbers of a summary are: frame, by, average, number of pairs."""
    over = {"pair": "over all pairs", "category": "over categories"}[summary["average"]]
    empty = summary["pairs_without_points"]
    skipped = f" ({empty} more without keypoints)" if empty else ""
    return (
        f"PCK in the {summary['protocol']} frame, per {summary['by']}, averaged {over}: "
        f"{summary['pairs']} pairs, {summary['points']} keypoints{skipped}"
    )


def format_overview(summary: Mapping[str, Any]) -> str:
    """Localisers x alphas over all pairs, under the line of `describe`; `summary` is of `pck.summarise`."""
    pck = summary["pck"]
    name_width = max([COLUMN, *(len(name) + 2 for name in pck)])
    alphas = next(iter(pck.values()), {})
    lines = [describe(summary), f"{'':<{name_width}}" + _columns((f"@{key}" for key in alphas), 10)]
    lines += [
        f"{name:<{name_width}}" + _columns((_percent(row["all"]) for row in rows.values()), 10)
        for name, rows in pck.items()
    ]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def format_category_table(summary: Mapping[str, Any]) -> str:
    """The release's text layout: a block per localiser, categories and "all" as columns, alphas as rows.

    Columns are 12 characters wide (wider only if a category's name needs it). The last line is that of
    `describe`.
    """
    columns = [*sorted(summary["categories"]), "all"]
    width = max([COLUMN, *(len(name) + 1 for name in columns)])
    lines = []
    for localiser, rows in summary["pck"].items():
        lines += [f"{localiser}:", _columns(["", *columns], width)]
        lines += [_columns([key, *(_percent(row[name]) for name in columns)], width) for key, row in rows.items()]
        lines.append(RULE)
    return "\n".join([*lines, describe(summary)]) + "\n"


def write_pairs_csv(path: str | os.PathLike, records: Iterable[Record]) -> None:
    """One row per pair, by index: ids, category, n_points, `flag:NAME`, `LOCALISER@ALPHA` (hits), and if the
    records have them `threshold` (px) and `error:LOCALISER` (px of each keypoint, exact in float32)."""
    records = merge_records(records)
    flags = sorted({name for record in records for name in record["flags"]})
    first = records[0] if records else {}
    hit_columns = [(name, key) for name, row in first.get("hits", {}).items() for key in row]
    error_columns = list(first.get("errors", {}))
    header = [
        *FIXED_COLUMNS,
        *(FLAG_PREFIX + name for name in flags),
        *(f"{n}@{key}" for n, key in hit_columns),
        *([THRESHOLD] if THRESHOLD in first else []),
        *(ERROR_PREFIX + name for name in error_columns),
    ]
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for record in records:
            row = [record[name] for name in FIXED_COLUMNS] + [record["flags"].get(name, -1) for name in flags]
            row += [record["hits"][name][key] for name, key in hit_columns]
            row += [_float_text([record[THRESHOLD]])] if THRESHOLD in first else []
            writer.writerow(row + [_float_text(record["errors"][name]) for name in error_columns])


def _float_text(values: Iterable[float]) -> str:
    """The shortest decimals that read back to the same float32."""
    return " ".join(str(value) for value in np.asarray(list(values), dtype=np.float32))


def _read_floats(text: str) -> list[float]:
    return np.array(text.split(), dtype=np.float32).tolist()


def read_pairs_csv(path: str | os.PathLike) -> list[Record]:
    """The records of a file of `write_pairs_csv`, from which every table can be computed again.

    Raises:
        ValueError: the file is no such table; the message names the file and the missing columns.
    """
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [name for name in FIXED_COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path} is not a per-pair result file: it has no column {missing}")
        return [_parse_row(row, path) for row in reader]


def _parse_row(row: Mapping[str, str], path: str | os.PathLike) -> Record:
    record: Record = {name: row[name] for name in FIXED_COLUMNS} | {"flags": {}, "hits": {}}
    try:
        record |= {name: int(row[name]) for name in ("index", "n_points")}
        for column, value in row.items():
            if column.startswith(FLAG_PREFIX):
                record["flags"][column.removeprefix(FLAG_PREFIX)] = int(value)
            elif column.startswith(ERROR_PREFIX):
                record.setdefault("errors", {})[column.removeprefix(ERROR_PREFIX)] = _read_floats(value)
            elif column == THRESHOLD:
                (record[THRESHOLD],) = _read_floats(value)
            elif "@" in column:
                localiser, key = column.split("@", 1)
                record["hits"].setdefault(localiser, {})[key] = int(value)
        for name, errors in record.get("errors", {}).items():
            if len(errors) != record["n_points"]:
                raise ValueError(f"{len(errors)} errors of {name} for {record['n_points']} keypoints")
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: row of pair {row['pair_id']!r} is damaged ({error})") from error
    return record


def write_predictions_csv(path: str | os.PathLike, records: Iterable[Record]) -> None:
    """One row per pair, by index: pair_id and for each localiser "x y;x y;...", px of the original target."""
    records = merge_records(records)
    names = list(records[0]["predictions"]) if records else []
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["index", "pair_id", *names])
        for record in records:
            cells = (";".join(f"{x:.2f} {y:.2f}" for x, y in record["predictions"][name]) for name in names)
            writer.writerow([record["index"], record["pair_id"], *cells])


def read_predictions_csv(path: str | os.PathLike) -> dict[str, dict[str, list[list[float]]]]:
    """{pair_id: {localiser: [[x, y], ...]}} of a file of `write_predictions_csv`, px of the original target.

    Raises:
        ValueError: the file is no such table; the message names the file and the row.
    """
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if list(reader.fieldnames or ())[:2] != ["index", "pair_id"]:
            raise ValueError(f"{path} is not a file of predicted points: its columns are {reader.fieldnames}")
        names = reader.fieldnames[2:]
        try:
            return {row["pair_id"]: {name: _parse_points(row[name]) for name in names} for row in reader}
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: line {reader.line_num} is damaged ({error})") from error


def _parse_points(cell: str) -> list[list[float]]:
    points = [[float(value) for value in point.split(" ")] for point in cell.split(";") if point]
    if any(len(point) != 2 for point in points):
        raise ValueError(f"{cell!r} is no list of points")
    return points


def write_summary_json(
    path: str | os.PathLike,
    summary: Mapping[str, Any],
    config: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> None:
    """Write {"summary", "config", "provenance"} as JSON; NaN and what else JSON does not know is refused."""
    content = {"summary": summary, "config": config, "provenance": provenance}
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False)
    write_text(path, text + "\n")
