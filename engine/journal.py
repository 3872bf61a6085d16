"""Predictions of a slow method, kept pair by pair: a test that was stopped goes on, another judgement costs nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dataset.pair_dataset import PairDataset, collate, drop_padding, pack_kps
from dataset.record import PairRecord
from utils.cache import file_name, hash_images
from utils.store import StoreError, digest, read_tensors, write_json, write_tensors


class Journal:
    """One safetensors file per pair, localiser -> (N, 2) px of the frame, in a folder named by what makes predictions.

    Files are whole or not there, so any number of processes may share the folder.
    """

    def __init__(self, folder: str | Path, made_by: Mapping[str, Any], localisers: Sequence[str]) -> None:
        self.made_by, self.localisers = dict(made_by), tuple(localisers)
        self.folder = Path(folder) / f"cached_output.{digest(self.made_by)[:12]}"

    def read(self, dataset: PairDataset, positions: Sequence[int]) -> Iterator[tuple[int, dict, dict[str, Tensor]]]:
        """(position, batch of the pair, predictions (1, N, 2)) of those pairs that are there."""
        bare = PairDataset(dataset.benchmark, dataset.frame)
        for position in positions:
            if found := self._read(dataset.benchmark[position]):
                batch = drop_padding(collate([bare[position]]))
                size = batch["src_kps"].shape[1]
                yield position, batch, {name: pack_kps(found[name], size)[None] for name in self.localisers}

    def keep(self, dataset: PairDataset, batch: Mapping[str, Any], predictions: Mapping[str, Tensor]) -> None:
        """The predictions (B, N, 2) for a batch of pairs."""
        if not (self.folder / "stamp.json").is_file():
            write_json(self.folder / "stamp.json", self.made_by)
        for i, position in enumerate(batch["index"].tolist()):
            record, real = dataset.benchmark[position], batch["kps_mask"][i].cpu()
            points = {name: predictions[name][i].cpu()[real] for name in self.localisers}
            write_tensors(self.folder / file_name(record.pair_id), points, {"pair": describe_pair(record)})

    def _read(self, record: PairRecord) -> dict[str, Tensor] | None:
        try:
            tensors, meta = read_tensors(self.folder / file_name(record.pair_id))
        except (FileNotFoundError, StoreError):  # a damaged file is made again
            return None
        right = meta.get("pair") == describe_pair(record) and set(self.localisers) <= tensors.keys()
        return tensors if right else None


def describe_pair(record: PairRecord) -> list[str]:
    """What predictions for a pair depend on: both images' content, and the source's points."""
    points = digest({}, {"points": torch.from_numpy(record.src_kps)})
    return [record.category, *hash_images([record.src.path, record.trg.path]), points]
