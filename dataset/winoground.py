"""Winoground: two sentences of the same words in another order, and the picture of each."""

from __future__ import annotations

from collections.abc import Iterator

from dataset.error import DatasetError, MissingDataError
from dataset.parse import Fields, read_json_lines
from dataset.ranking import ItemRecord, RankingBenchmark

_FILES = ("examples.jsonl", "winoground.parquet")


class Winoground(RankingBenchmark):
    """2 texts, 2 images, text k belongs to image k."""

    name = "winoground"
    FOLDER = "winoground"
    SPLITS = ("test",)
    both_ways = True
    LAYOUT = """\
winoground/
  examples.jsonl                lines of {id, caption_0, caption_1, image_0, image_1, collapsed_tag}
  winoground.parquet            or this, with the same columns, images by name
  images/{image}.png"""

    def read(self) -> Iterator[ItemRecord]:
        for number, row in enumerate(self._rows()):
            texts = tuple(row.text(f"caption_{side}") for side in "01")
            names = [row.file_name(f"image_{side}") for side in "01"]
            images = tuple(self.refer(self.root / "images" / (n if "." in n else f"{n}.png")) for n in names)
            kind = str(row.values.get("collapsed_tag") or "any")
            yield ItemRecord(f"{number:04d}-{row.values.get('id', number)}", kind, texts, images)

    def _rows(self) -> list[Fields]:
        lines, table = (self.root / name for name in _FILES)
        if lines.is_file():
            return read_json_lines(lines)
        if not table.is_file():
            raise MissingDataError(f"{self.root}: neither {' nor '.join(_FILES)}")
        import pandas as pd

        try:
            rows = pd.read_parquet(table).to_dict("records")
        except ImportError as error:
            raise MissingDataError(f"{table}: `pip install pyarrow` reads it, or save it as {_FILES[0]}") from error
        except (OSError, ValueError) as error:
            raise DatasetError(f"{table}: no Parquet file that can be read ({error})") from None
        return [Fields(f"{table}, row {number}", row) for number, row in enumerate(rows)]
