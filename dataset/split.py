"""A split of a data set on disk as a sequence of records: what every benchmark is, whatever is asked of a method."""

from __future__ import annotations

import copy
import hashlib
import logging
import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from dataset.error import DatasetError, MissingDataError, choose
from dataset.record import ImageRef

PREPARE = "sh script/prepare_data.sh {name} --root {root}"
logger = logging.getLogger(__name__)


class Split(Sequence):
    """Records with a category and an id each.

    root: the folder of the data set itself (see LAYOUT). split: one of SPLITS. category: "all" or one of
    `categories`, compared by equality. index_root: folder for an index, by default `<root>/.index`. prepare:
    the command that makes the data set, with {name} and {root}, the folder above `root`, for error messages.
    threshold_rule: of pairs, another than the data set's own. pairs_per_category: at most so many records; 0 = all.

    Raises MissingDataError (a FileNotFoundError) or DatasetError (a ValueError), which name the file and say
    how the folder should look; ValueError for an unknown split or category, which lists the known ones.
    """

    name: ClassVar[str]
    task: ClassVar[str]  # what is asked of a method: a name in engine.task.TASKS
    unit: ClassVar[str]  # what a record is called
    LAYOUT: ClassVar[str]  # the folder, drawn, for error messages
    ADVICE: ClassVar[str]  # ends them; may say {prepare}
    FOLDER: ClassVar[str]  # its usual name
    SPLITS: ClassVar[tuple[str, ...]] = ("trn", "val", "test")
    threshold_rule: str = ""  # of pairs
    categories: tuple[str, ...]  # all categories of the data set, sorted
    image_categories: tuple[str, ...]  # those of its images, which may be finer; a prompt is asked for them
    left_out: Sequence[str] = ()  # why records of the split and category are not in this sequence, a line each

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
        self.root, self.category, self.pairs_per_category = Path(root), category, pairs_per_category
        self.threshold_rule = threshold_rule or self.threshold_rule
        advice = self.ADVICE.format(prepare=fill_command(prepare, self.name, self.root.parent))
        self.split = choose(split, self.SPLITS, f"split of {self.name}")
        try:
            self.require_layout()
            self.categories = tuple(self.find_categories())
            self.image_categories = tuple(self.find_image_categories())
            if "all" in self.categories:
                raise DatasetError(f"{self.origin}: a category is called 'all', which stands for all of them")
            choose(category, ("all", *self.categories), f"category of {self.name}")
            self._kinds, self._ids = self.load(index_root)
            self._whole = np.flatnonzero([category in ("all", kind) for kind in self._kinds])
            self._rows = self.thin_out(self._whole)
            if not len(self._rows):
                why = "".join(f"; all are left out, the first for {reason}" for reason in self.left_out[:1])
                raise DatasetError(f"{self.origin}: split {split!r} has no {self.unit} of category {category!r}{why}")
            self._require_images()
        except MissingDataError as error:
            layout = f"The folder should look like this:\n{self.LAYOUT}\n{advice}."
            raise MissingDataError(f"{error}\n{layout}") from error
        except DatasetError as error:
            raise DatasetError(f"{error} ({advice})") from error
        if count := len(self.left_out):
            words = self.name, split, count, count + len(self), self.unit, self.left_out[0]
            logger.warning("%s %s: %d of %d %ss are left out; the first is %s", *words)

    # What each kind of benchmark says for itself.

    def require_layout(self) -> None:
        """Refuses a root without what the data set cannot do without."""
        if not self.root.is_dir():
            raise MissingDataError(f"{self.root}: no such folder (the root of {self.name})")

    def find_categories(self) -> Iterable[str]:
        """All categories of the data set, sorted, whatever the split."""
        raise NotImplementedError

    def find_image_categories(self) -> Iterable[str]:
        """All categories that an image can have."""
        return self.categories

    def load(self, index_root: str | Path | None) -> tuple[Sequence[str], Sequence[str]]:
        """Category and id of every record of the split."""
        raise NotImplementedError

    def images(self) -> list[ImageRef]:
        """The images of these records, unique by identifier, in order of first appearance."""
        raise NotImplementedError

    # What all share.

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def origin(self) -> Path:
        """What says which records there are."""
        return self.root

    def select(self, positions: Sequence[int]) -> Split:
        """The same benchmark with only the records at `positions`, in that order."""
        return self.with_rows(self._rows[list(positions)])

    def with_rows(self, rows: np.ndarray) -> Split:
        other = copy.copy(self)
        other._rows = rows
        return other

    def thin_out(self, rows: np.ndarray) -> np.ndarray:
        """At most `pairs_per_category` rows of each category, by the hash of their ids: always the same ones."""
        if not self.pairs_per_category:
            return rows
        kept: dict[str, list[int]] = {}
        for row in sorted(rows, key=lambda row: hashlib.sha256(self._ids[row].encode()).digest()):
            kept.setdefault(self._kinds[row], []).append(row)
        return np.sort([row for members in kept.values() for row in members[: self.pairs_per_category]])

    def _require_images(self) -> None:
        """One listing per folder instead of one look-up per image."""
        paths = [ref.path for ref in self.images()]
        present = {folder: list_names(folder) for folder in set(map(os.path.dirname, paths))}
        missing = [path for path in paths if os.path.basename(path) not in present[os.path.dirname(path)]]
        if missing:
            some = ", ".join(missing[:3]) + " ..." * (len(missing) > 3)
            raise MissingDataError(f"{len(missing)} of {len(paths)} images are missing: {some}")


def fill_command(command: str, name: str, root: str | Path) -> str:
    """`command` with the data set's name for {name} and the quoted folder of the data sets for {root}."""
    return command.replace("{name}", name).replace("{root}", shlex.quote(str(root)))


def list_names(folder: str | Path) -> frozenset[str]:
    """Names in a folder; empty if there is no such folder."""
    try:
        return frozenset(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
