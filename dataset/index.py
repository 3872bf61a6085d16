"""A table of pairs kept on disk, with a stamp of the files it was made from."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from dataset.error import MissingDataError
from dataset.table import PairTable
from utils.store import StoreError, read_tensors, write_tensors

FORMAT = 3  # raise it when the columns or their meaning change
logger = logging.getLogger(__name__)


def make_stamp(name: str, files: Iterable[Path], folders: Iterable[Path]) -> str:
    """One line that changes with the content of `files` and the state of `folders` (see `folder_state`)."""
    stamp = {
        "format": FORMAT,
        "name": name,
        "files": [hashlib.sha256(path.read_bytes()).hexdigest() for path in files],
        "folders": [folder_state(folder) for folder in folders],
    }
    return json.dumps(stamp, sort_keys=True)


def folder_state(folder: Path) -> tuple[int, int, int]:
    """(number of files, their bytes, newest modification in ns) of a folder and the folders in it."""
    if not folder.is_dir():
        raise MissingDataError(f"{folder}: no such folder")
    count = size = newest = 0
    for place, _, names in os.walk(folder, followlinks=True):
        count += len(names)
        for name in names:
            with suppress(FileNotFoundError):  # a dangling link
                status = os.stat(os.path.join(place, name))
                size, newest = size + status.st_size, max(newest, status.st_mtime_ns)
    return count, size, newest


def open_table(path: Path, stamp: str, read: Callable[[], PairTable]) -> PairTable:
    """The table in `path` if it carries this `stamp`; otherwise the result of `read`, which is kept there.

    A stale or torn file is rebuilt, with one line said; a folder that cannot be written costs a warning and
    the time to read again next time, and so does a Python without torch, which only checks data sets.
    """
    try:
        import torch
    except ImportError:
        return read()
    if (table := _load(path, stamp)) is not None:
        return table
    arrays, lists = (table := read()).to_columns()
    try:
        write_tensors(path, {k: torch.from_numpy(v) for k, v in arrays.items()}, {"stamp": stamp, "lists": lists})
    except OSError as error:
        what = f"it stays in memory and is made again next time; pass a writable index_root ({error})"
        logger.warning("cannot write the index %s: %s", path, what)
    return table


def _load(path: Path, stamp: str) -> PairTable | None:
    try:
        tensors, meta = read_tensors(path, remedy="rebuilding it")
        if meta["stamp"] == stamp:
            return PairTable.from_columns({name: value.numpy() for name, value in tensors.items()}, meta["lists"])
        logger.warning("index %s is stale (annotations, or settings of its pairs, have changed): rebuilding it", path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, StoreError, KeyError, TypeError) as error:
        logger.warning("index %s is torn (%s): rebuilding it", path, error)
    return None
