"""A page to look through transferred labels, the least confident first: drag points, accept, reject, save to COCO."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.static_page import StaticPage
from dataset import DatasetError
from dataset.annotation import read_labels
from dataset.parse import read_text
from utils.store import write_text

VERDICTS = ("accepted", "rejected", "")


class Review(StaticPage):
    """The labels of a COCO file and where their pictures are; `save` writes what was changed back into the file."""

    template = "review.html"

    def __init__(self, path: Path, image_root: str | Path | None = None, most: int | None = None) -> None:
        """most: so many objects at most are shown, the least confident. Raises DatasetError, MissingDataError."""
        labels = read_labels(path, image_root)  # checks it
        self.path, self.name = path, path.stem
        self._content = json.loads(read_text(path))
        if "annotations" not in self._content:
            raise DatasetError(f"{path}: not in COCO's format; transfer.py writes it")
        self._by_id = {str(record["id"]): record for record in self._content["annotations"] if record.get("keypoints")}
        self._shown = sorted(self._by_id.values(), key=lambda record: record.get("score", 1.0))[:most]
        used = dict.fromkeys(record["image_id"] for record in self._shown)
        self._image_ids = list(used)
        self.images = [str(Path(labels.images[key].path).resolve()) for key in used]  # by the number the page knows

    def describe(self, urls: Sequence[str], served: bool) -> dict[str, Any]:
        """served: `save` is asked, else the page holds the whole file and gives the labels as a download."""
        content = dict(self._content)
        if served:  # the rest of the file stays here
            wanted = set(self._image_ids)
            content["annotations"] = self._shown
            content["images"] = [record for record in content["images"] if record["id"] in wanted]
        return {
            "name": self.path.name,
            "served": served,
            "coco": content,
            "order": [record["id"] for record in self._shown],
            "urls": dict(zip(self._image_ids, urls, strict=True)),
        }

    def save(self, changes: Any) -> str:
        """Take {annotation id: {"keypoints", "found", "review"}} over into the file; what to tell of it.

        ValueError for what no page of ours sends; then nothing is changed.
        """
        if not isinstance(changes, dict):
            raise ValueError("not an object of changes")
        for key, change in changes.items():
            self._check(key, change)
        for key, change in changes.items():
            record = self._by_id[key]
            record.update(change)
            record["num_keypoints"] = sum(v > 0 for v in record["keypoints"][2::3])
            if not record.get("review"):
                record.pop("review", None)
        write_text(self.path, json.dumps(self._content, allow_nan=False) + "\n")
        return f"{len(changes)} objects saved to {self.path.name}"

    def _check(self, key: str, change: Any) -> None:
        if key not in self._by_id:
            raise ValueError(f"no annotation {key[:20]!r}")
        if not isinstance(change, dict) or not change.keys() <= {"keypoints", "found", "review"}:
            raise ValueError(f"annotation {key}: not a change of keypoints, found and review")
        count = len(self._by_id[key]["keypoints"])
        for name in ("keypoints", "found"):
            values = change.get(name, [0] * count)
            if not isinstance(values, list) or len(values) != count or not all(map(_is_number, values)):
                raise ValueError(f"annotation {key}: {name} must be {count} numbers")
        if any(v not in (0, 1, 2) for v in change.get("keypoints", [0] * count)[2::3]):
            raise ValueError(f"annotation {key}: a visibility must be 0, 1 or 2")
        if change.get("review", "") not in VERDICTS:
            raise ValueError(f"annotation {key}: review must be one of {', '.join(VERDICTS[:2])}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and abs(value) < 1e6
