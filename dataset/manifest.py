"""Manifests: items written down once, one JSON object a line, so that a set of candidates can be shared as it is."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from dataset.error import DatasetError
from dataset.parse import read_json_lines
from dataset.ranking import ItemRecord, RankingBenchmark
from utils.store import write_text


class Manifest(RankingBenchmark):
    """Any number of texts and images, the same for all items of a file."""

    name = "manifest"
    FOLDER = "manifest"
    FEW, REST = "", ""  # every split has its file
    LAYOUT = """\
manifest/
  {split}.jsonl                 lines of {"id", "kind", "texts": [...], "images": [...], "label": 0 or "both ways"};
                                images are paths from this folder, or absolute"""

    def read(self) -> Iterator[ItemRecord]:
        labels = set()
        for number, row in enumerate(read_json_lines(self.root / f"{self.split}.jsonl")):
            for key in ("texts", "images"):
                values = row.get(key)
                if not isinstance(values, list) or not values or not all(isinstance(v, str) and v for v in values):
                    raise row.wrong(key, f"a list of {key}")
            labels.add(row.get("label"))
            if labels not in ({0}, {"both ways"}):
                raise row.wrong("label", 'the same for all lines, 0 or "both ways"')
            refs = tuple(self.refer(Path(os.path.normpath(self.root / image))) for image in row.values["images"])
            kind = str(row.values.get("kind", "any"))
            yield ItemRecord(str(row.values.get("id", number)), kind, tuple(row.values["texts"]), refs)
        self.both_ways = labels == {"both ways"}


def write_manifest(path: str | Path, benchmark: RankingBenchmark) -> None:
    """Write the items of a benchmark; images are paths from the manifest's folder."""
    folder = Path(path).resolve().parent
    label = "both ways" if benchmark.both_ways else 0
    lines = []
    for item in benchmark:
        images = [Path(os.path.relpath(ref.path, folder)).as_posix() for ref in item.images]
        row = {"id": item.item_id, "kind": item.category, "texts": list(item.texts), "images": images, "label": label}
        lines.append(json.dumps(row, ensure_ascii=False))
    if len({item.item_id for item in benchmark}) < len(benchmark):
        raise DatasetError(f"{benchmark.root}: an id stands for two items")
    write_text(path, "\n".join(lines) + "\n")
