"""Items of texts and images: which of the candidates belong together. What every benchmark of that task is.

An item has T texts and I images; candidate number `text * I + image` is a text with an image. Candidate 0 is the true
one, or, where `both_ways`, every text k with its image k.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from dataset.benchmark import PREPARE, fill_command, list_names
from dataset.error import DatasetError, MissingDataError, choose
from dataset.record import ImageRef


@dataclass(frozen=True)
class ItemRecord:
    """T texts and I images."""

    item_id: str
    category: str  # the kind of item, such as what differs between its candidates
    texts: tuple[str, ...]
    images: tuple[ImageRef, ...]


class RankingBenchmark(Sequence):
    """A split of a data set: a sequence of item records, all with as many texts and images.

    root: the folder of the data set itself (see LAYOUT). split: one of SPLITS. category: "all" or one of `categories`.
    prepare: as of dataset.benchmark.Benchmark. pairs_per_category: at most so many items, chosen by the hash of their
    ids; 0 = all. FEW and REST are splits of one file, which `share` parts before it is thinned out.

    Raises MissingDataError (a FileNotFoundError) or DatasetError (a ValueError), which name the file and the line;
    ValueError for an unknown split or category, which lists the known ones. Nothing is written.
    """

    name: ClassVar[str]
    task: ClassVar[str] = "ranking"
    LAYOUT: ClassVar[str]  # the folder, drawn, for error messages
    FOLDER: ClassVar[str]  # its usual name
    SPLITS: ClassVar[tuple[str, ...]]
    FEW: ClassVar[str] = "trn"
    REST: ClassVar[str] = "val"
    both_ways: ClassVar[bool] = False
    left_out: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        root: str | Path,
        split: str,
        category: str = "all",
        index_root: str | Path | None = None,
        prepare: str = PREPARE,
        pairs_per_category: int = 0,
        **_: Any,
    ) -> None:
        self.root = Path(root)
        self.split = choose(split, self.SPLITS, f"split of {self.name}")
        self.prepare = fill_command(prepare, self.name, self.root.parent)
        try:
            if not self.root.is_dir():
                raise MissingDataError(f"{self.root}: no such folder (the root of {self.name})")
            items = list(self.read())
        except FileNotFoundError as error:
            layout = f"The folder should look like this:\n{self.LAYOUT}"
            what = f"{error.filename}: no such file" if error.filename else str(error)
            raise MissingDataError(f"{what}\n{layout}") from error
        self.categories = tuple(sorted({item.category for item in items}))
        self.category = choose(category, ("all", *self.categories), f"category of {self.name}")
        self._most = pairs_per_category
        self._whole = [item for item in items if category in ("all", item.category)]
        self._items = self._thin_out(self._whole)
        if not self._items:
            raise DatasetError(f"{self.root}: split {split!r} of {self.name} has no items")
        self._check_items()

    def read(self) -> Iterable[ItemRecord]:
        """All items of the split's file, in its order."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> ItemRecord:
        return self._items[index]

    def select(self, positions: Sequence[int]) -> RankingBenchmark:
        """The same benchmark with only the items at `positions`, in that order."""
        other = copy(self)
        other._items = [self._items[position] for position in positions]
        return other

    def share(self, few_shot: float) -> RankingBenchmark:
        """What the split has of its file: FEW the first `few_shot` of the items, REST the others, any other all."""
        few = int(len(self._whole) * few_shot)
        chosen = {self.FEW: self._whole[:few], self.REST: self._whole[few:]}.get(self.split, self._whole)
        if not chosen:
            raise DatasetError(
                f"{self.root}: {few_shot:g} of {len(self._whole)} items leaves none for split {self.split}"
            )
        other = copy(self)
        other._items = self._thin_out(chosen)
        return other

    def images(self) -> list[ImageRef]:
        """The images of these items, unique by identifier, in order of first appearance."""
        return list({ref.identifier: ref for item in self for ref in item.images}.values())

    def _thin_out(self, items: list[ItemRecord]) -> list[ItemRecord]:
        """At most `pairs_per_category` of each, in their order."""
        if not self._most:
            return items
        kept: dict[str, list[int]] = {}
        names = [hashlib.sha256(item.item_id.encode()).digest() for item in items]
        for position in sorted(range(len(names)), key=names.__getitem__):
            kept.setdefault(items[position].category, []).append(position)
        return [items[n] for n in sorted(n for members in kept.values() for n in members[: self._most])]

    def _check_items(self) -> None:
        """Every item has as many texts and images as the first; every image is there, by one listing per folder."""
        shape = len(self._items[0].texts), len(self._items[0].images)
        if self.both_ways and shape[0] != shape[1]:
            raise DatasetError(f"{self.root}: {self.name} needs as many texts as images per item, got {shape}")
        for item in self._items:
            if (found := (len(item.texts), len(item.images))) != shape:
                raise DatasetError(f"{self.root}: item {item.item_id} has {found} texts and images, the first {shape}")
        paths = [ref.path for ref in self.images()]
        present = {folder: list_names(folder) for folder in set(map(os.path.dirname, paths))}
        missing = [path for path in paths if os.path.basename(path) not in present[os.path.dirname(path)]]
        if missing:
            some = ", ".join(missing[:3]) + " ..." * (len(missing) > 3)
            raise MissingDataError(f"{len(missing)} of {len(paths)} images are missing: {some}")

    def _image(self, path: Path) -> ImageRef:
        """The image of a file below the root; its place there is its identifier."""
        try:
            name = path.relative_to(self.root)
        except ValueError:
            name = path
        return ImageRef(name.with_suffix("").as_posix(), str(path), "", None)
