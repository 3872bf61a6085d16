"""One half-precision array per image on disk: random access by identifier, resumable, stamped, checked.

Files of a cache in its folder (KEY = hash of the stamp, so settings that differ never share a file):

    cached_output.KEY.json        the stamp in words: network, image size, preprocessing, ...
    cached_output.KEY.rN.bin      rows written by process N, one array after the other
    cached_output.KEY.rN.rows     one JSON line per row: identifier, hash of the image file, checksum of the row

A row counts only when its line is complete, its bytes are all there and their checksum agrees. So a build that was
killed at any moment goes on where it stopped, and a torn file costs only the rows that it tore.
"""

import fcntl
import hashlib
import json
import math
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from utils.store import atomic_path

DTYPE = np.dtype(np.float16)


class CacheError(RuntimeError):
    """A cache that cannot be used; the message names the file and what to do."""


class Row(NamedTuple):
    """Where an image's array lies."""

    file: str  # name of the .bin file
    offset: int  # bytes
    image_hash: str
    crc: int
    made: int = 0  # time of writing, ns: of two rows of an image the newer counts


class FeatureCache:
    """Arrays of one shape by image identifier. `get` may be called from any number of reading processes."""

    def __init__(self, folder: str | Path, stamp: dict, shape: Sequence[int]):
        self.folder = Path(folder)
        self.stamp = {**stamp, "shape": list(shape), "dtype": DTYPE.name}
        self.shape = tuple(shape)
        self.row_bytes = math.prod(shape) * DTYPE.itemsize
        text = json.dumps(self.stamp, sort_keys=True)
        self.stem = f"cached_output.{hashlib.blake2b(text.encode(), digest_size=6).hexdigest()}"
        self.reload()

    def reload(self) -> None:
        """Read what is on disk now (after another process has written)."""
        self._files: dict[str, np.memmap] = {}
        self.rows: dict[str, Row] = {}
        for path in sorted(self.folder.glob(f"{self.stem}.*.rows")):
            for identifier, row in self._read_rows(path):
                if identifier not in self.rows or row.made >= self.rows[identifier].made:
                    self.rows[identifier] = row

    def __contains__(self, identifier: str) -> bool:
        return identifier in self.rows

    def __len__(self) -> int:
        return len(self.rows)

    def get(self, identifier: str) -> torch.Tensor:
        """The array of one image, half precision, shape `self.shape`. Raises CacheError if absent or damaged."""
        if identifier not in self.rows:
            raise CacheError(
                f"{self.folder / self.stem}.*: no entry for image {identifier}; run the script again to add it"
            )
        row = self.rows[identifier]
        data = self._bytes(row)
        if zlib.crc32(data) != row.crc:
            raise CacheError(
                f"{self.folder / row.file}: the entry of image {identifier} is damaged (checksum differs); "
                "run the script again to rebuild it"
            )
        return torch.from_numpy(data.view(DTYPE).reshape(self.shape))

    def missing(self, images: Iterable[tuple[str, str]]) -> list[str]:
        """Identifiers, out of (identifier, image hash) pairs, whose row is absent, damaged or of another image."""
        return [name for name, image_hash in images if not self._is_good(name, image_hash)]

    @contextmanager
    def writer(self, rank: int = 0) -> Iterator[Callable[[str, str, torch.Tensor], None]]:
        """A function (identifier, image hash, array) that appends rows; one writer per rank at a time."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_stamp()
        name = f"{self.stem}.r{rank}"
        with open(self.folder / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two runs never write into one file at a time
            rows_path, bin_path = self.folder / f"{name}.rows", self.folder / f"{name}.bin"
            self._drop_torn_line(rows_path)
            with open(bin_path, "ab") as bin_file, open(rows_path, "a") as rows_file:

                def write(identifier: str, image_hash: str, array: torch.Tensor) -> None:
                    row = self._append(bin_file, identifier, array, image_hash)
                    rows_file.write(json.dumps({"id": identifier, **row._asdict()}) + "\n")
                    rows_file.flush()

                yield write

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_files": {}}

    def _append(self, bin_file, identifier: str, array: torch.Tensor, image_hash: str) -> Row:
        if tuple(array.shape) != self.shape:
            raise CacheError(f"image {identifier}: expected an array of shape {self.shape}, got {tuple(array.shape)}")
        data = array.detach().to("cpu", torch.float16).contiguous().numpy()
        if not np.isfinite(data).all():
            raise CacheError(f"image {identifier}: its features do not fit half precision (inf or nan)")
        offset = bin_file.tell()
        bin_file.write(data.tobytes())
        bin_file.flush()
        return Row(os.path.basename(bin_file.name), offset, image_hash, zlib.crc32(data), time.time_ns())

    def _write_stamp(self) -> None:
        with atomic_path(self.folder / f"{self.stem}.json") as temporary:
            temporary.write_text(json.dumps(self.stamp, indent=2, sort_keys=True) + "\n")

    def _read_rows(self, path: Path) -> Iterator[tuple[str, Row]]:
        bin_path = path.with_suffix(".bin")
        size = bin_path.stat().st_size if bin_path.exists() else 0
        for line in path.read_text(errors="replace").splitlines():
            try:
                entry = json.loads(line)
                identifier = entry.pop("id")
                row = Row(**entry)
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # a line that was being written when the process died
            if row.offset + self.row_bytes <= size:
                yield identifier, row

    def _drop_torn_line(self, path: Path) -> None:
        """End a half-written last line, so that the next one starts on its own."""
        if path.exists() and (content := path.read_bytes()) and not content.endswith(b"\n"):
            with open(path, "ab") as file:
                file.write(b"\n")

    def _is_good(self, identifier: str, image_hash: str) -> bool:
        row = self.rows.get(identifier)
        return row is not None and row.image_hash == image_hash and zlib.crc32(self._bytes(row)) == row.crc

    def _bytes(self, row: Row) -> np.ndarray:
        if row.file not in self._files:
            self._files[row.file] = np.memmap(self.folder / row.file, dtype=np.uint8, mode="r")
        return np.array(self._files[row.file][row.offset : row.offset + self.row_bytes])


def hash_file(path: str) -> str:
    """Short hash of a file's content."""
    return hashlib.blake2b(Path(path).read_bytes(), digest_size=8).hexdigest()


def fill_cache(
    cache: FeatureCache,
    hashes: dict[str, str],
    compute: Callable[[Sequence[str]], torch.Tensor],
    missing: Sequence[str],
    batch_size: int,
    rank: int = 0,
    progress: Callable[[Iterable], Iterable] = iter,
) -> None:
    """Compute and append the `missing` identifiers of this rank, `batch_size` images at a time.

    hashes: {identifier: hash of its image file}. compute: identifiers -> (n, *shape) features.
    """
    with cache.writer(rank) as write:
        cache.reload()
        left = set(cache.missing((name, hashes[name]) for name in missing))  # another run may have been faster
        missing = [name for name in missing if name in left]
        batches = [missing[i : i + batch_size] for i in range(0, len(missing), batch_size)]
        for identifiers in progress(batches):
            for identifier, array in zip(identifiers, compute(identifiers), strict=True):
                write(identifier, hashes[identifier], array)
