"""Pairs of images with keypoints, and the sequence of them that every benchmark is.

Points are (x, y) pixels, boxes (x1, y1, x2, y2) pixels, sizes (H, W).
"""

from __future__ import annotations

import copy
import hashlib
import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from dataset.error import DatasetError, MissingDataError, choose
from dataset.index import make_stamp, open_table
from dataset.table import FLAGS, PairTable

PREPARE = "sh script/prepare_data.sh {name} --root {root}"


@dataclass(frozen=True)
class ImageRef:
    """One image of a benchmark; a mirrored image is another image with another identifier."""

    identifier: str  # the key of this image in every cache
    path: str
    category: str
    size: tuple[int, int]  # (H, W) of the file
    flip: bool = False  # mirrored left to right after loading


@dataclass(frozen=True, eq=False)
class PairRecord:
    """Two images and their N matching keypoints, in px of the original images (mirrored if `flip`)."""

    pair_id: str
    category: str
    src: ImageRef
    trg: ImageRef
    src_kps: np.ndarray  # (N, 2) float32
    trg_kps: np.ndarray  # (N, 2) float32
    kps_ids: tuple[str, ...]  # N names, such as "7"
    src_bbox: np.ndarray  # (4,) float32
    trg_bbox: np.ndarray  # (4,) float32
    flags: dict[str, int]  # names of dataset.table.FLAGS; {} when unknown


def mirror_kps(kps: np.ndarray, width: int) -> np.ndarray:
    """Points (N, 2) of an image of `width` pixels after mirroring it: x -> width - 1 - x."""
    return np.stack([width - 1 - kps[:, 0], kps[:, 1]], axis=1)


def mirror_bbox(bbox: np.ndarray, width: int) -> np.ndarray:
    """Box (4,) after mirroring the image: both sides mirrored and swapped, so that x1 < x2 again."""
    x1, y1, x2, y2 = bbox
    return np.array([width - 1 - x2, y1, width - 1 - x1, y2], dtype=bbox.dtype)


def threshold(rule: str, bbox: np.ndarray, kps: np.ndarray, size: tuple[int, int]) -> float:
    """The length that PCK's alpha multiplies, in pixels of whatever frame the target's arguments are in.

    rule: "bbox" = longer side of the box (4,); "image" = longer side of the image of `size` (H, W);
    "kps" = longer side of the tight box around the keypoints (N, 2). Scale before calling: sides scaled
    per axis may change which one is longer. Keypoints must not be clamped or padded.
    """
    if rule == "bbox":
        return float(max(bbox[2] - bbox[0], bbox[3] - bbox[1]))
    if rule == "image":
        return float(max(size))
    if rule == "kps":
        return float(np.ptp(kps, axis=0).max())
    raise ValueError(f"unknown threshold rule {rule!r}: known are 'bbox', 'image', 'kps'")


class Benchmark(Sequence):
    """A split of a data set: a sequence of pair records, made on demand from a cached index.

    root: the folder of the data set itself (see LAYOUT). split: one of SPLITS. category: "all" or one of
    `categories`, compared by equality. index_root: folder for the index, by default `<root>/.index`. prepare:
    the command that makes the data set, with {name} and {root}, the folder above `root`, for error messages.

    Raises MissingDataError (a FileNotFoundError) or DatasetError (a ValueError), which name the file and say
    how the folder should look; ValueError for an unknown split or category, which lists the known ones.
    """

    name: ClassVar[str]
    LAYOUT: ClassVar[str]  # the folder, drawn, for error messages
    FOLDER: ClassVar[str]  # its usual name
    SPLITS: ClassVar[tuple[str, ...]] = ("trn", "val", "test")
    threshold_rule: ClassVar[str]  # "bbox", "image" or "kps": see `threshold`
    max_kps: ClassVar[int]
    categories: tuple[str, ...]  # all categories of the data set, sorted

    def __init__(
        self,
        root: str | Path,
        split: str,
        category: str = "all",
        index_root: str | Path | None = None,
        prepare: str = PREPARE,
    ) -> None:
        self.root = Path(root)
        self.prepare = fill_command(prepare, self.name, self.root.parent)
        self.split = choose(split, self.SPLITS, f"split of {self.name}")
        try:
            self._require_layout()
            self.categories = tuple(self.find_categories())
            choose(category, ("all", *self.categories), f"category of {self.name}")
            self.category = category
            self._table = open_table(self._index_path(index_root), self._stamp(), self.read)
            self._rows = self._select(category)
            self._check_images()
        except (DatasetError, MissingDataError) as error:
            raise type(error)(f"{error}\n{self._help()}") from error

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
        row = self._rows[index]
        table = self._table
        points = slice(table.kps_start[row], table.kps_start[row + 1])
        src = self._image(table.src[row])
        return PairRecord(
            pair_id=table.pair_id[row],
            category=src.category,
            src=src,
            trg=self._image(table.trg[row]),
            src_kps=table.src_kps[points].copy(),
            trg_kps=table.trg_kps[points].copy(),
            kps_ids=tuple(table.kps_name[code] for code in table.kps_code[points]),
            src_bbox=table.src_bbox[row].copy(),
            trg_bbox=table.trg_bbox[row].copy(),
            flags={name: int(flag) for name, flag in zip(FLAGS, table.flags[row], strict=True) if flag >= 0},
        )

    def select(self, positions: Sequence[int]) -> Benchmark:
        """The same benchmark with only the pairs at `positions`, in that order."""
        other = copy.copy(self)
        other._rows = self._rows[list(positions)]
        return other

    def images(self) -> list[ImageRef]:
        """The images of these pairs, unique by identifier, in order of first appearance, source first."""
        return [self._image(image) for image in self._image_rows()]

    def _image(self, image: int) -> ImageRef:
        table = self._table
        height, width = table.size[image].tolist()
        return ImageRef(
            identifier=table.identifier[image],
            path=str(self.root / table.path[image]),
            category=table.category[image],
            size=(height, width),
            flip=bool(table.flip[image]),
        )

    def _image_rows(self) -> np.ndarray:
        both = np.stack([self._table.src[self._rows], self._table.trg[self._rows]], axis=1).ravel()
        unique, first = np.unique(both, return_index=True)
        return unique[np.argsort(first)]

    def _select(self, category: str) -> np.ndarray:
        wanted = np.array([category in ("all", name) for name in self._table.category], dtype=bool)
        rows = np.flatnonzero(wanted[self._table.src])
        if len(rows) == 0:
            file = self.split_files()[0]
            raise DatasetError(f"{file}: split {self.split!r} has no pair of category {category!r}")
        return rows

    def _check_images(self) -> None:
        """One listing per folder instead of one look-up per image."""
        paths = [self._table.path[image] for image in self._image_rows()]
        present = {folder: list_names(self.root / folder) for folder in {os.path.dirname(path) for path in paths}}
        missing = [path for path in paths if os.path.basename(path) not in present[os.path.dirname(path)]]
        if missing:
            some = ", ".join(str(self.root / path) for path in missing[:3])
            raise MissingDataError(
                f"{len(missing)} of {len(paths)} images are missing: {some}{' ...' * (len(missing) > 3)}"
            )

    def _require_layout(self) -> None:
        if not self.root.is_dir():
            raise MissingDataError(f"{self.root}: no such folder (the root of {self.name})")
        for path in self.split_files():
            if not path.is_file():
                inside = self.root / self.FOLDER
                hint = f" Did you mean the root {inside}?" if inside.is_dir() else ""
                raise MissingDataError(f"{path}: no such file (the pairs of split {self.split!r}).{hint}")

    def _index_path(self, index_root: str | Path | None) -> Path:
        file_name = f"{self.name}_{self.split}.npz"
        if index_root is None:
            return self.root / ".index" / file_name
        digest = hashlib.sha256(str(self.root.resolve()).encode()).hexdigest()[:8]
        return Path(index_root) / f"{self.root.name}-{digest}" / file_name

    def _stamp(self) -> str:
        return make_stamp(f"{self.name} {self.split}", self.split_files(), self.annotation_folders())

    def _help(self) -> str:
        return f"The folder should look like this:\n{self.LAYOUT}\n`{self.prepare}` makes and checks it."


def fill_command(command: str, name: str, root: str | Path) -> str:
    """`command` with the data set's name for {name} and the quoted folder of the data sets for {root}."""
    return command.replace("{name}", name).replace("{root}", shlex.quote(str(root)))


def list_names(folder: Path) -> frozenset[str]:
    """Names in a folder; empty if there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries)
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
