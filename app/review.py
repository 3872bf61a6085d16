"""A page to look through transferred labels, the least confident first: drag points, accept, reject, save to COCO."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dataset import DatasetError
from dataset.annotation import read_labels
from dataset.parse import read_text
from utils.store import write_text

TEMPLATE = Path(__file__).parent / "static" / "review.html"
VERDICTS = ("accepted", "rejected", "")


class Review:
    """The labels of a COCO file and where their pictures are; `save` writes what was changed back into the file."""

    def __init__(self, path: Path, image_root: str | Path | None = None, most: int | None = None) -> None:
        """most: so many objects at most are shown, the least confident. Raises DatasetError, MissingDataError."""
        labels = read_labels(path, image_root)  # checks it
        self.path, self.name = path, path.stem
        self._content = json.loads(read_text(path))
        if "annotations" not in self._content:
            raise DatasetError(f"{path}: not in COCO's format; transfer.py writes it")
        self._by_id = {record["id"]: record for record in self._content["annotations"] if record.get("keypoints")}
        self._shown = sorted(self._by_id.values(), key=lambda record: record.get("score", 1.0))[:most]
        used = dict.fromkeys(record["image_id"] for record in self._shown)
        self._image_ids = list(used)
        self.images = [str(Path(labels.images[key].path).resolve()) for key in used]  # by the number the page knows

    def write(self, path: Path) -> None:
        """A file whose pictures are read from where they are, and which gives the labels as a download."""
        folder = path.resolve().parent
        urls = [quote(os.path.relpath(image, folder).replace(os.sep, "/")) for image in self.images]
        write_text(path, self.render(urls, served=False))

    def render(self, urls: Sequence[str], served: bool = True) -> str:
        """The page, with a URL for each image. served: `save` is asked, else the page holds the whole file."""
        content = dict(self._content)
        if served:  # the rest of the file stays here
            wanted = set(self._image_ids)
            content["annotations"] = self._shown
            content["images"] = [record for record in content["images"] if record["id"] in wanted]
        data = {
            "name": self.path.name,
            "served": served,
            "coco": content,
            "order": [record["id"] for record in self._shown],
            "urls": dict(zip(self._image_ids, urls, strict=True)),
        }
        text = json.dumps(data, separators=(",", ":"), allow_nan=False)
        return TEMPLATE.read_text(encoding="utf-8").replace("{{data}}", text.replace("<", "\\u003c"))

    def save(self, changes: Any) -> str:
        """Take {annotation id: {"keypoints", "found", "review"}} over into the file; what to tell of it.

        ValueError for what no page of ours sends; then nothing is changed.
        """
        if not isinstance(changes, dict):
            raise ValueError("not an object of changes")
        checked = {self._find(key): self._check(self._find(key), change) for key, change in changes.items()}
        for key, change in checked.items():
            record = self._by_id[key]
            record.update(change)
            record["num_keypoints"] = sum(v > 0 for v in record["keypoints"][2::3])
            if not record.get("review"):
                record.pop("review", None)
        write_text(self.path, json.dumps(self._content, allow_nan=False) + "\n")
        return f"{len(checked)} objects saved to {self.path.name}"

    def _find(self, key: str) -> int:
        for known in (key, int(key) if key.lstrip("-").isdigit() else key):
            if known in self._by_id:
                return known
        raise ValueError(f"no annotation {key[:20]!r}")

    def _check(self, key: int, change: Any) -> Mapping[str, Any]:
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
        return change


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and abs(value) < 1e6
