"""Reading annotation files: text, pair lists in CSV, image headers; what is wrong is named with file and line."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from dataset.error import DatasetError, MissingDataError, choose
from utils.image import ImageError, read_size


def read_text(path: str | Path) -> str:
    """The content of a UTF-8 file, with or without a byte order mark. FileNotFoundError if it is not there."""
    try:
        with open(path, "rb") as file:
            return file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: not UTF-8 text ({error})") from None
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # a folder, a name that is too long, no permission
        raise DatasetError(f"{path}: cannot be read ({error})") from None


def is_file_name(text: str) -> bool:
    """Whether it names a file of the folder it is looked up in, on every system: no separators, no line breaks."""
    return text.isprintable() and not set(text) & set("/\\") and text.strip() not in ("", ".", "..")


class CsvRow:
    """A row of a CSV file that knows where it stands."""

    def __init__(self, where: str, cells: dict[str, str]) -> None:
        self.where, self.cells = where, cells

    def text(self, column: str) -> str:
        value = self.cells[column].strip()
        if not value:
            raise DatasetError(f"{self.where}: column {column!r} is empty")
        return value

    def integer(self, column: str, low: int, high: int) -> int:
        """A whole number in [low, high]."""
        number = self.numbers([column])[0]
        if not (number.is_integer() and low <= number <= high):
            value = self.cells[column]
            raise DatasetError(f"{self.where}: column {column!r} is {value!r}, expected a whole number {low}..{high}")
        return int(number)

    def numbers(self, columns: Sequence[str]) -> list[float]:
        """A number per column, NaN where the cell is empty."""
        values = []
        for column in columns:
            value = self.cells[column].strip()
            try:
                values.append(float(value or "nan"))
            except ValueError:
                raise DatasetError(f"{self.where}: column {column!r} is {value!r}, expected a number") from None
        return values

    def image_path(self, column: str) -> PurePosixPath:
        """Path of an image below the root of the data set, in a folder."""
        path = PurePosixPath(self.text(column))
        if len(path.parts) < 2 or not all(map(is_file_name, path.parts)):
            raise DatasetError(f"{self.where}: column {column!r} is {str(path)!r}, expected a path below the root")
        return path


def read_csv(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> tuple[list[str], list[CsvRow]]:
    """(header, rows) of a CSV file that must have the `columns`, may have the `optional` ones, and no others."""
    try:
        lines = list(csv.reader(read_text(path).splitlines()))
    except csv.Error as error:
        raise DatasetError(f"{path}: not a CSV file ({error})") from None
    header = [name.strip() for name in lines[0]] if lines else []
    if missing := [name for name in columns if name not in header]:
        raise DatasetError(f"{path}: column {', '.join(missing)} missing; the header is {','.join(header)!r}")
    rows = []
    try:
        for name in header:
            choose(name, [*columns, *optional], "column")
    except ValueError as error:
        raise DatasetError(f"{path}: {error}") from None
    if len(set(header)) < len(header):
        raise DatasetError(f"{path}: a column stands twice in the header {','.join(header)!r}")
    for number, cells in enumerate(lines[1:], start=2):
        where = f"{path}, line {number}"
        if cells and len(cells) != len(header):
            raise DatasetError(f"{where}: {len(cells)} cells, but the header has {len(header)} columns")
        if cells:
            rows.append(CsvRow(where, dict(zip(header, cells, strict=True))))
    return header, rows


def refuse_marks(kps: np.ndarray, where: str, names: Iterable[str], absent: str) -> None:
    """Refuses points (N, 2) at (0, 0) or (-1, -1), by which other formats mark an absent keypoint; here it is `absent`.

    Taken as points they would make the tight box around an object, and so its threshold, larger.
    """
    for name, point in zip(names, kps.tolist(), strict=True):
        if point in ([0, 0], [-1, -1]):
            raise DatasetError(f"{where}: keypoint {name} is ({point[0]:g}, {point[1]:g}); an absent one is {absent}")


def measure_image(path: Path, where: str) -> tuple[int, int]:
    """(H, W) of an upright image, from its header."""
    try:
        return read_size(path)
    except ImageError as error:
        raise (DatasetError if path.exists() else MissingDataError)(f"{error} ({where})") from None
