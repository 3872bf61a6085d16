"""Reading annotation files: text, JSON, pair lists in CSV, image headers; what is wrong is named with file and line."""

from __future__ import annotations

import csv
import json
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from dataset.error import DatasetError, MissingDataError, choose
from utils.image import ImageError, read_size

LARGEST = 1e9  # coordinate, px
LONGEST_SIDE = 10**6  # of an image, px


def read_text(path: str | Path) -> str:
    """The content of a UTF-8 file, with or without a byte order mark."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: not UTF-8 text ({error})") from None
    except FileNotFoundError:
        raise MissingDataError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # a folder, a name that is too long, no permission
        raise DatasetError(f"{path}: cannot be read ({error})") from None


def read_lines(path: str | Path) -> list[tuple[str, str]]:
    """(file and line, text without white space around it) of every line that is not empty."""
    lines = enumerate(map(str.strip, read_text(path).split("\n")), start=1)
    return [(f"{path}, line {number}", line) for number, line in lines if line]


def read_names(path: Path, form: re.Pattern, example: str) -> dict[str, tuple[str, re.Match]]:
    """{line: (file and line, match)} of a list of names; DatasetError for a line of another form or a repeated one."""
    found: dict[str, tuple[str, re.Match]] = {}
    for where, line in read_lines(path):
        match = form.fullmatch(line)
        if match is None or not line.isprintable():
            raise DatasetError(f"{where}: {line!r} is not of the form {example}")
        if line in found:
            raise DatasetError(f"{where}: {line!r} stands in {found[line][0].rpartition(', ')[2]} already")
        found[line] = where, match
    return found


def is_file_name(text: str) -> bool:
    """Whether it names a file of the folder it is looked up in, on every system: no separators, no line breaks."""
    return text.isprintable() and not set(text) & set("/\\") and text.strip() not in ("", ".", "..")


class Fields:
    """Named values of one record: a JSON object, a row of a CSV file, a MAT file.

    What is no record, missing, or something else than asked for is a DatasetError that names `where`, key and value.
    """

    def __init__(self, where: str, values: Mapping[str, Any]) -> None:
        if not isinstance(values, Mapping):
            raise DatasetError(f"{where}: expected an object, got {reprlib.repr(values)}")
        self.where, self.values = where, values

    def get(self, key: str) -> Any:
        if key not in self.values:
            raise DatasetError(f"{self.where}: {key!r} is missing")
        return self.values[key]

    def wrong(self, key: str, expected: str) -> DatasetError:
        value = self.values[key]
        shown = (
            f"{type(value).__name__} {value.shape} of {value.dtype}" if hasattr(value, "dtype") else reprlib.repr(value)
        )
        return DatasetError(f"{self.where}: {key!r} is {shown}, expected {expected}")

    def text(self, key: str, expected: str = "a text") -> str:
        """Words, without white space around them."""
        value = self.get(key)
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(key, expected)
        return value.strip()

    def file_name(self, key: str) -> str:
        value = self.get(key)
        if not isinstance(value, str) or not is_file_name(value):
            raise self.wrong(key, "the name of an image file, without a folder")
        return value

    def path(self, key: str, below: str = "the root", least: int = 2) -> PurePosixPath:
        """Path of a file below a folder, of at least so many names."""
        expected = f"a path below {below}"
        path = PurePosixPath(self.text(key, expected))
        if len(path.parts) < least or not all(map(is_file_name, path.parts)):
            raise self.wrong(key, expected)
        return path

    def number(self, key: str) -> float:
        """NaN of an empty text."""
        value = self.get(key)
        try:
            return float(value.strip() or "nan" if isinstance(value, str) else value)
        except (OverflowError, TypeError, ValueError):
            raise self.wrong(key, "a number") from None

    def whole(self, key: str, low: int, high: int) -> int:
        """A whole number in [low, high]."""
        number = self.number(key)
        if isinstance(self.get(key), bool) or not (number.is_integer() and low <= number <= high):
            raise self.wrong(key, f"a whole number {low}..{high}")
        return int(number)

    def size(self, height: str = "height", width: str = "width") -> tuple[int, int]:
        """(H, W) of an image."""
        return self.whole(height, 1, LONGEST_SIDE), self.whole(width, 1, LONGEST_SIDE)

    def array(self, key: str, shape: Sequence[int | None], expected: str, nan: bool = False) -> np.ndarray:
        """Numbers in float64 of a shape, in which None is any length; nan: NaN is one of them."""
        value = self.get(key)
        try:
            array = np.array(value)
        except (OverflowError, RecursionError, TypeError, ValueError) as error:  # rows of unequal length, too deep
            raise self.wrong(key, expected) from error
        if array.size == 0 and shape[0] is None:
            return np.zeros([n or 0 for n in shape])
        fits = array.ndim == len(shape) and all(n in (None, m) for n, m in zip(shape, array.shape, strict=True))
        if not fits or array.dtype.kind not in "iuf":
            raise self.wrong(key, expected)
        array = array.astype(np.float64)
        if not (np.abs(array[~np.isnan(array)] if nan else array) < LARGEST).all():
            raise self.wrong(key, f"{expected}, none infinite or beyond {LARGEST:g}")
        return array

    def records(self, key: str) -> list[Fields]:
        """The objects of a list."""
        values = self.get(key)
        if not isinstance(values, list):
            raise self.wrong(key, "a list of objects")
        return [Fields(f"{self.where}, {key}[{number}]", value) for number, value in enumerate(values)]

    def by_id(self, key: str) -> dict[int, Fields]:
        """The objects of a list by their ids, each of which may be there once."""
        found: dict[int, Fields] = {}
        for record in self.records(key):
            number = record.whole("id", -(2**62), 2**62)
            if found.setdefault(number, record) is not record:
                raise DatasetError(f"{record.where}: id {number} stands there twice")
        return found


def parse_json(text: str, where: str | Path) -> Any:
    try:
        return json.loads(text)
    except (RecursionError, ValueError) as error:
        raise DatasetError(f"{where}: not valid JSON ({error})") from None


def read_record(path: str | Path, defaults: Mapping[str, Any] | None = None) -> Fields:
    """The object in a JSON file; defaults: values of keys that it may lack."""
    values = Fields(str(path), parse_json(read_text(path), path)).values
    return Fields(str(path), {**(defaults or {}), **values})


def read_json_lines(path: Path) -> list[Fields]:
    """The objects of a JSON Lines file."""
    return [Fields(where, parse_json(line, where)) for where, line in read_lines(path)]


def read_csv(path: Path, columns: Sequence[str], optional: Sequence[str] | None = ()) -> list[Fields]:
    """The rows of a CSV file that must have the `columns`, may have the `optional` ones, None: any, no others."""
    reader = csv.reader(read_text(path).split("\n"))
    try:
        rows = [(reader.line_num, cells) for cells in reader if cells]
    except csv.Error as error:
        raise DatasetError(f"{path}: not a CSV file ({error})") from None
    header = [name.strip() for name in rows[0][1]] if rows else []
    if missing := [name for name in columns if name not in header]:
        raise DatasetError(f"{path}: column {', '.join(missing)} missing; the header is {','.join(header)!r}")
    try:
        for name in header if optional is not None else ():
            choose(name, [*columns, *optional], "column")
    except ValueError as error:
        raise DatasetError(f"{path}: {error}") from None
    if len(set(header)) < len(header):
        raise DatasetError(f"{path}: a column stands twice in the header {','.join(header)!r}")
    for number, cells in rows[1:]:
        if len(cells) != len(header):
            what = f"{len(cells)} cells, but the header has {len(header)} columns"
            raise DatasetError(f"{path}, line {number}: {what}")
    return [Fields(f"{path}, line {number}", dict(zip(header, cells, strict=True))) for number, cells in rows[1:]]


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
