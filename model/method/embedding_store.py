"""Embeddings of points on disk: one safetensors file per point, in a folder named by what found them.

    cached_output.KEY/stamp.json                    what found them: networks, image size, steps, layers, ...
    cached_output.KEY/IMAGE@X,Y.safetensors         "embedding" (rounds, L, D) and "loss" (rounds, steps), float32

A file is complete or not there, whoever writes it; more rounds are added to those that are there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.cache import file_name
from utils.store import StoreError, digest, read_tensors, write_json, write_tensors


def read_losses(folder: str | Path) -> Tensor:
    """Losses (points x rounds, steps) of all points in a folder of a store. StoreError if there are none."""
    paths = sorted(Path(folder).glob("*@*.safetensors"))
    if not paths:
        raise StoreError(f"{folder} holds no embeddings; test.py writes them below OUTPUT_ROOT/asset/LDM-embedding")
    return torch.cat([read_tensors(path)[0]["loss"] for path in paths])


class EmbeddingStore:
    """Points are (x, y) px of the image as the networks see it, a tensor, by whose content the file is known."""

    def __init__(self, folder: str | Path, stamp: Mapping[str, Any]) -> None:
        self.stamp = dict(stamp)
        self.folder = Path(folder) / f"cached_output.{digest(self.stamp)[:12]}"

    def get(self, name: str, point: tuple[float, float], image: Tensor) -> dict[str, Tensor] | None:
        """ "embedding" and "loss" on the CPU; None if there are none, or those of another image."""
        try:
            tensors, meta = read_tensors(self._path(name, point))
        except (FileNotFoundError, StoreError):  # a damaged file is made again
            return None
        same = meta.get("image") == digest({}, {"image": image}) and meta.get("point") == list(point)
        return tensors if same else None

    def put(
        self, name: str, point: tuple[float, float], image: Tensor, embeddings: Tensor, losses: Tensor, first: int
    ) -> None:
        """Keep rounds `first`, `first + 1`, ... beside those before them, which are there."""
        found = {"embedding": embeddings, "loss": losses}
        if first:
            before = self.get(name, point, image)
            found = {key: torch.cat([before[key][:first], value.cpu()]) for key, value in found.items()}
        if not (self.folder / "stamp.json").is_file():
            write_json(self.folder / "stamp.json", self.stamp)
        write_tensors(self._path(name, point), found, {"image": digest({}, {"image": image}), "point": list(point)})

    def _path(self, name: str, point: tuple[float, float]) -> Path:
        return self.folder / file_name("{}@{:.3f},{:.3f}".format(name, *point))
