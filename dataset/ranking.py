"""Items of texts and images: which of the candidates belong together. What every benchmark of that task is.

An item has T texts and I images; candidate number `text * I + image` is a text with an image. Candidate 0 is the true
one, or, where `both_ways`, every text k with its image k.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from dataset.error import DatasetError
from dataset.record import ImageRef
from dataset.split import Split


@dataclass(frozen=True)
class ItemRecord:
    """T texts and I images."""

    item_id: str
    category: str  # the kind of item, such as what differs between its candidates
    texts: tuple[str, ...]
    images: tuple[ImageRef, ...]


class RankingBenchmark(Split):
    """A sequence of item records, all with as many texts and images; see `Split`. Nothing is written.

    FEW and REST are splits of one file, which `share` parts before it is thinned out.
    """

    task, unit = "ranking", "item"
    ADVICE = "docs/dsd.md lists every file"
    FEW: ClassVar[str] = "trn"
    REST: ClassVar[str] = "val"
    both_ways: ClassVar[bool] = False

    def read(self) -> Iterable[ItemRecord]:
        """All items of the split's file, in its order."""
        raise NotImplementedError

    def find_categories(self) -> list[str]:
        self._items = list(self.read())
        return sorted({item.category for item in self._items})

    def load(self, index_root: str | Path | None) -> tuple[Sequence[str], Sequence[str]]:
        shapes = [(len(item.texts), len(item.images)) for item in self._items]
        for item, shape in zip(self._items, shapes, strict=True):
            if shape != shapes[0]:
                what = f"item {item.item_id} has {shape} texts and images, the first {shapes[0]}"
                raise DatasetError(f"{self.root}: {what}")
            if self.both_ways and shape[0] != shape[1]:
                raise DatasetError(f"{self.root}: {self.name} needs as many texts as images per item, got {shape}")
        return [item.category for item in self._items], [item.item_id for item in self._items]

    def __getitem__(self, index: int) -> ItemRecord:
        return self._items[self._rows[index]]

    def images(self) -> list[ImageRef]:
        return list({ref.identifier: ref for item in self for ref in item.images}.values())

    def share(self, few_shot: float) -> RankingBenchmark:
        """What the split has of its file: FEW the first `few_shot` of the items, REST the others, any other all."""
        few = int(len(self._whole) * few_shot)
        chosen = {self.FEW: self._whole[:few], self.REST: self._whole[few:]}.get(self.split, self._whole)
        if not len(chosen):
            what = f"{few_shot:g} of {len(self._whole)} items leaves none for split {self.split}"
            raise DatasetError(f"{self.root}: {what}")
        return self.with_rows(self.thin_out(chosen))

    def refer(self, path: Path) -> ImageRef:
        """The image of a file; its place below the root is its identifier."""
        name = path.relative_to(self.root) if path.is_relative_to(self.root) else path
        return ImageRef(name.with_suffix("").as_posix(), str(path), "", None)
