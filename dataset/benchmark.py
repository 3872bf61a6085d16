"""Benchmarks of correspondence: a split as a sequence of pair records."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from dataset.error import MissingDataError
from dataset.index import make_stamp, open_table
from dataset.record import ImageRef, PairRecord
from dataset.split import Split
from dataset.symmetry import FILE, Symmetry, read_symmetries
from dataset.table import PairTable


class Benchmark(Split):
    """A sequence of pair records, made on demand from a cached index; see `Split`."""

    task, unit = "correspondence", "pair"
    ADVICE = "`{prepare}` makes and checks it"
    threshold_rule: str  # a name in dataset.record.RULES
    max_kps: int  # of the fullest pair: what batches are padded to
    SYMMETRIES: ClassVar[Mapping[str, Symmetry]] = {}  # by category, of a data set that brings no tables of its own

    # What a benchmark has to say for itself, besides its categories.

    def split_files(self) -> list[Path]:
        """Files that list the pairs of this split."""
        raise NotImplementedError

    def annotation_folders(self) -> list[Path]:
        """Folders whose files `read` looks into; any change there makes the index stale."""
        raise NotImplementedError

    def read(self) -> PairTable:
        """Reads every annotation of the split (all categories). Slow; called when there is no fresh index."""
        raise NotImplementedError

    # What all share.

    def load(self, index_root: str | Path | None) -> tuple[Sequence[str], Sequence[str]]:
        words = f"{self.name} {self.split} {self.threshold_rule} {self.pairs_per_category}"
        stamp = make_stamp(words, self.split_files(), self.annotation_folders())
        self._table = open_table(self._index_path(index_root), stamp, self.read)
        self._images = [replace(ref, path=str(self.root / ref.path)) for ref in self._table.images]
        return self._table.category, self._table.pair_id

    def __getitem__(self, index: int) -> PairRecord:
        return self._table.record(self._rows[index], self._images)

    @property
    def origin(self) -> Path:
        """The list of the split, or the folder of its pairs' files."""
        return [*self.split_files(), *reversed(self.annotation_folders())][0]

    def find_symmetry(self, category: str) -> Symmetry | None:
        """What mirroring makes of the keypoints of a category of pairs; None where nobody has said."""
        return self.symmetries.get(category)

    def find_ids(self, category: str, names: Iterable[str]) -> list[int]:
        """Numbers of a category's keypoints, by which its symmetry knows them; -1 of an unknown one."""
        return [int(name) if name.isdecimal() else -1 for name in names]

    @cached_property
    def symmetries(self) -> Mapping[str, Symmetry]:
        """By category: of the file keypoints.json in the data set's folder, or the tables that are known."""
        path = self.root / FILE
        return read_symmetries(path) if path.is_file() else self.SYMMETRIES

    @property
    def left_out(self) -> list[str]:
        """Why pairs of the split and category are not in this sequence: they have no threshold."""
        return [reason for _, category, reason in self._table.left_out if self.category in ("all", category)]

    def images(self) -> list[ImageRef]:
        """Of a pair its source first."""
        places, first = np.unique(self._table.image[self._rows], return_index=True)
        return [self._images[place] for place in places[np.argsort(first)]]

    def require_layout(self) -> None:
        if not self.root.is_dir():
            above = copy.copy(self)
            above.root = self.root.parent
            itself = all(path.is_file() for path in above.split_files())
            hint = f". {above.root} is the data set itself: DATASET.ROOT is the folder above it" * itself
            raise MissingDataError(f"{self.root}: no such folder (the root of {self.name}){hint}")
        for path in self.split_files():
            if not path.is_file():
                inside = self.root / self.FOLDER
                hint = f" Did you mean the root {inside}?" if inside.is_dir() else ""
                raise MissingDataError(f"{path}: no such file (the pairs of split {self.split!r}).{hint}")

    def _index_path(self, index_root: str | Path | None) -> Path:
        file_name = f"{self.name}_{self.split}.safetensors"
        if index_root is None:
            return self.root / ".index" / file_name
        digest = hashlib.sha256(str(self.root.resolve()).encode()).hexdigest()[:8]
        return Path(index_root) / f"{self.root.name}-{digest}" / file_name
