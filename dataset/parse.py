"""Reading annotation files: text, pair lists in CSV, image headers; what is wrong is named with file and line."""

from __future__ import annotations

import csv
import json
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from dataset.error import DatasetError, MissingDataError, choose
from utils.image import ImageError, read_size

LARGEST = 1e9  # coordinate, px


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


class Fields:
    """Named values of one record: a JSON object, a row of a CSV file, a MAT file.

    What is missing, or something else than asked for, is a DatasetError that names `where`, key and value.
    """

    def __init__(self, where: str, values: Mapping[str, Any]) -> None:
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

    def file_name(self, key: str) -> str:
        value = self.get(key)
        if not isinstance(value, str) or not is_file_name(value):
            raise self.wrong(key, "the name of an image file, without a folder")
        return value

    def text(self, key: str) -> str:
        """Words, without white space around them."""
        value = self.get(key)
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(key, "a text")
        return value.strip()

    def path(self, key: str) -> PurePosixPath:
        """Path of a file in a folder below the root of the data set."""
        path = PurePosixPath(self.get(key).strip())
        if len(path.parts) < 2 or not all(map(is_file_name, path.parts)):
            raise self.wrong(key, "a path below the root")
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

    def array(self, key: str, shape: Sequence[int | None], expected: str, nan: bool = False) -> np.ndarray:
        """Numbers in float64 of a shape, in which None is any length; nan: NaN is one of them."""
        try:
            array = np.array(self.get(key))
        except (OverflowError, RecursionError, TypeError) as error:
            raise self.wrong(key, expected) from error
        except ValueError as error:  # rows of unequal length, too deep; or the key is missing
            raise error if isinstance(error, DatasetError) else self.wrong(key, expected) from error
        if array.size == 0 and shape[0] is None:
            return np.zeros([n or 0 for n in shape])
        fits = array.ndim == len(shape) and all(n in (None, m) for n, m in zip(shape, array.shape, strict=True))
        if not fits or array.dtype.kind not in "iuf":
            raise self.wrong(key, expected)
        array = array.astype(np.float64)
        if not (np.abs(array[~np.isnan(array)] if nan else array) < LARGEST).all():
            raise self.wrong(key, f"{expected}, none infinite or beyond {LARGEST:g}")
        return array


def read_record(path: str | Path, defaults: Mapping[str, Any] | None = None) -> Fields:
    """The object in a JSON file; defaults: values of keys that it may lack."""
    try:
        data = json.loads(read_text(path))
    except FileNotFoundError:
        raise MissingDataError(f"{path}: no such file, but the layout lists it") from None
    except (RecursionError, ValueError) as error:
        raise error if isinstance(error, DatasetError) else DatasetError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(data, dict):
        raise DatasetError(f"{path}: holds a {type(data).__name__}, expected an object with the pair's keys")
    return Fields(str(path), {**(defaults or {}), **data})


def read_csv(path: Path, columns: Sequence[str], optional: Sequence[str] | None = ()) -> tuple[list[str], list[Fields]]:
    """(header, rows) of a CSV file that must have the `columns`, may have the `optional` ones, None: any, no others."""
    try:
        lines = list(csv.reader(read_text(path).splitlines()))
    except csv.Error as error:
        raise DatasetError(f"{path}: not a CSV file ({error})") from None
    header = [name.strip() for name in lines[0]] if lines else []
    if missing := [name for name in columns if name not in header]:
        raise DatasetError(f"{path}: column {', '.join(missing)} missing; the header is {','.join(header)!r}")
    rows = []
    try:
        for name in header if optional is not None else ():
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
            rows.append(Fields(where, dict(zip(header, cells, strict=True))))
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
