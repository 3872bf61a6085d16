"""Reading pair lists in CSV and what the image header says: shared by the two Proposal Flow benchmarks."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from dataset.error import DatasetError, MissingDataError


class CsvRow:
    """A row of a CSV file that knows where it stands."""

    def __init__(self, path: Path, number: int, cells: dict[str, str]) -> None:
        self.where = f"{path}, line {number}"
        self._cells = cells

    def text(self, column: str) -> str:
        value = (self._cells[column] or "").strip()
        if not value:
            raise DatasetError(f"{self.where}: column {column!r} is empty")
        return value

    def integer(self, column: str, low: int, high: int) -> int:
        """A whole number in [low, high]."""
        number = self.numbers([column])[0]
        if not (number.is_integer() and low <= number <= high):
            value = self._cells[column]
            raise DatasetError(f"{self.where}: column {column!r} is {value!r}, expected a whole number {low}..{high}")
        return int(number)

    def numbers(self, columns: Sequence[str]) -> list[float]:
        """A number per column, NaN where the cell is empty."""
        values = []
        for column in columns:
            value = (self._cells[column] or "").strip()
            try:
                values.append(float(value or "nan"))
            except ValueError:
                raise DatasetError(f"{self.where}: column {column!r} is {value!r}, expected a number") from None
        return values

    def image_path(self, column: str) -> PurePosixPath:
        """Path of an image relative to the root of the data set."""
        path = PurePosixPath(self.text(column))
        if path.is_absolute() or ".." in path.parts or len(path.parts) < 2:
            raise DatasetError(f"{self.where}: column {column!r} is {str(path)!r}, expected a path below the root")
        return path


def read_csv(path: Path, columns: Sequence[str]) -> tuple[list[str], Iterator[CsvRow]]:
    """(header, rows) of a CSV file that must have at least these columns."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: not UTF-8 text ({error})") from None
    reader = csv.DictReader(lines)
    header = [name.strip() for name in reader.fieldnames or []]
    reader.fieldnames = header
    missing = [name for name in columns if name not in header]
    if missing:
        raise DatasetError(f"{path}: column {', '.join(missing)} missing; the header is {','.join(header)!r}")
    return header, (CsvRow(path, reader.line_num, cells) for cells in reader)


def read_size(path: Path, where: str) -> tuple[int, int]:
    """(H, W) from the header of an image file; nothing is decoded."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            width, height = image.size
    except FileNotFoundError:
        raise MissingDataError(f"{path}: no such image ({where})") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise DatasetError(f"{path}: not a readable image ({error}; {where})") from None
    return height, width
