"""A split of a data set on disk as a sequence of pairs: what every benchmark is."""

from __future__ import annotations

import copy
import hashlib
import logging
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from dataset.error import DatasetError, MissingDataError, choose
from dataset.index import make_stamp, open_table
from dataset.record import ImageRef, PairRecord
from dataset.symmetry import FILE, Symmetry, read_symmetries
from dataset.table import PairTable

PREPARE = "sh script/prepare_data.sh {name} --root {root}"
logger = logging.getLogger(__name__)


class Benchmark(Sequence):
    """A split of a data set: a sequence of pair records, made on demand from a cached index.

    root: the folder of the data set itself (see LAYOUT). split: one of SPLITS. category: "all" or one of
    `categories`, compared by equality. index_root: folder for the index, by default `<root>/.index`. prepare:
    the command that makes the data set, with {name} and {root}, the folder above `root`, for error messages.
    threshold_rule: another than the data set's own. pairs_per_category: at most so many; 0 = all.

    Raises MissingDataError (a FileNotFoundError) or DatasetError (a ValueError), which name the file and say
    how the folder should look; ValueError for an unknown split or category, which lists the known ones.
    """

    name: ClassVar[str]
    task: ClassVar[str] = "correspondence"  # what is asked of a method: a name in engine.task.TASKS
    LAYOUT: ClassVar[str]  # the folder, drawn, for error messages
    ADVICE: ClassVar[str] = "`{prepare}` makes and checks it"  # ends them; another where dataset/prepare.py makes none
    FOLDER: ClassVar[str]  # its usual name
    SPLITS: ClassVar[tuple[str, ...]] = ("trn", "val", "test")
    threshold_rule: str  # "bbox", "image" or "kps": see `threshold`
    max_kps: int  # of the fullest pair: what batches are padded to
    SYMMETRIES: ClassVar[Mapping[str, Symmetry]] = {}  # by category, of a data set that brings no tables of its own
    categories: tuple[str, ...]  # all categories of the data set, sorted

    def __init__(
        self,
        root: str | Path,
        split: str,
        category: str = "all",
        index_root: str | Path | None = None,
        prepare: str = PREPARE,
        threshold_rule: str = "",
        pairs_per_category: int = 0,
    ) -> None:
        self.root = Path(root)
        self.threshold_rule = threshold_rule or self.threshold_rule
        self.pairs_per_category = pairs_per_category
        advice = self.ADVICE.format(prepare=fill_command(prepare, self.name, self.root.parent))
        self.split = choose(split, self.SPLITS, f"split of {self.name}")
        try:
            self._require_layout()
            self.categories = tuple(self.find_categories())
            if "all" in self.categories:
                raise DatasetError(f"{self.origin}: a category is called 'all', which stands for all of them")
            choose(category, ("all", *self.categories), f"category of {self.name}")
            self.category = category
            words = f"{self.name} {split} {self.threshold_rule} {pairs_per_category}"
            stamp = make_stamp(words, self.split_files(), self.annotation_folders())
            self._table = open_table(self._index_path(index_root), stamp, self.read)
            self._images = [replace(ref, path=str(self.root / ref.path)) for ref in self._table.images]
            self._rows = self._select(category)
            self._check_images()
        except MissingDataError as error:
            layout = f"The folder should look like this:\n{self.LAYOUT}\n{advice}."
            raise MissingDataError(f"{error}\n{layout}") from error
        except DatasetError as error:
            raise DatasetError(f"{error} ({advice})") from error
        if reasons := self.left_out:
            logger.warning(
                "%s %s: %d of %d pairs are left out, for they have no threshold; the first is %s",
                *(self.name, split, len(reasons), len(reasons) + len(self), reasons[0]),
            )

    # What a benchmark has to say for itself.

    def split_files(self) -> list[Path]:
        """Files that list the pairs of this split."""
        raise NotImplementedError

    def annotation_folders(self) -> list[Path]:
        """Folders whose files `read` looks into; any change there makes the index stale."""
        raise NotImplementedError

    def find_categories(self) -> Iterable[str]:
        """All categories of the data set, sorted, whatever the split."""
        raise NotImplementedError

    def read(self) -> PairTable:
        """Reads every annotation of the split (all categories). Slow; called when there is no fresh index."""
        raise NotImplementedError

    # What all share.

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> PairRecord:
        return self._table.record(self._rows[index], self._images)

    @property
    def origin(self) -> Path:
        """What says which pairs there are: the list of the split, or the folder of their files."""
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
        """Why pairs of the split and category are not in this sequence: a line each. They have no threshold."""
        return [reason for _, category, reason in self._table.left_out if self.category in ("all", category)]

    def select(self, positions: Sequence[int]) -> Benchmark:
        """The same benchmark with only the pairs at `positions`, in that order."""
        other = copy.copy(self)
        other._rows = self._rows[list(positions)]
        return other

    def images(self) -> list[ImageRef]:
        """The images of these pairs, unique by identifier, in order of first appearance, source first."""
        places, first = np.unique(self._table.image[self._rows], return_index=True)
        return [self._images[place] for place in places[np.argsort(first)]]

    def _select(self, category: str) -> np.ndarray:
        rows = np.flatnonzero([category in ("all", name) for name in self._table.category])
        if len(rows) == 0:
            file = self.origin
            why = "".join(f"; all are left out, the first for {reason}" for reason in self.left_out[:1])
            raise DatasetError(f"{file}: split {self.split!r} has no pair of category {category!r}{why}")
        return self._thin_out(rows) if self.pairs_per_category else rows

    def _thin_out(self, rows: np.ndarray) -> np.ndarray:
        """At most `pairs_per_category` rows of each, by the hash of their ids: always the same ones."""
        kept: dict[str, list[int]] = {}
        for row in sorted(rows, key=lambda row: hashlib.sha256(self._table.pair_id[row].encode()).digest()):
            kept.setdefault(self._table.category[row], []).append(row)
        return np.sort([row for members in kept.values() for row in members[: self.pairs_per_category]])

    def _check_images(self) -> None:
        """One listing per folder instead of one look-up per image."""
        paths = [ref.path for ref in self.images()]
        present = {folder: list_names(folder) for folder in set(map(os.path.dirname, paths))}
        missing = [path for path in paths if os.path.basename(path) not in present[os.path.dirname(path)]]
        if missing:
            some = ", ".join(missing[:3]) + " ..." * (len(missing) > 3)
            raise MissingDataError(f"{len(missing)} of {len(paths)} images are missing: {some}")

    def _require_layout(self) -> None:
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


def fill_command(command: str, name: str, root: str | Path) -> str:
    """`command` with the data set's name for {name} and the quoted folder of the data sets for {root}."""
    return command.replace("{name}", name).replace("{root}", shlex.quote(str(root)))


def list_names(folder: str) -> frozenset[str]:
    """Names in a folder; empty if there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries)
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
