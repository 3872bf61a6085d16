"""ComVG: a sentence, a picture that it is true of, and one in which its subject, verb or object is another."""

from __future__ import annotations

from collections.abc import Iterator

from dataset.parse import read_csv
from dataset.ranking import ItemRecord, RankingBenchmark

CHANGES = ("object", "subject", "verb")
LARGEST = 10**9  # image id


class ComVG(RankingBenchmark):
    """1 text, 2 images. test: 5,400 items; trn, val: the first 5 % of the training file and the rest of it."""

    name = "comvg"
    FOLDER = "comvg"
    LAYOUT = """\
comvg/
  data/compositional_visual_genome.csv  id,sentence,pos_triplet,neg_triplet,pos_image_id,neg_image_id,neg_value
  data/comvg_train.csv                  sentence,pos_image_id,neg_image_id
  Visual_Genome/vg_concept/{id}.jpg     images of the test
  Visual_Genome/VG_100K/{id}.jpg        images of the training"""

    def read(self) -> Iterator[ItemRecord]:
        tested = self.split == "test"
        name, folder = ("compositional_visual_genome", "vg_concept") if tested else ("comvg_train", "VG_100K")
        images = self.root / "Visual_Genome" / folder
        columns = ("sentence", "pos_image_id", "neg_image_id", *["neg_value"] * tested)
        for number, row in enumerate(read_csv(self.root / "data" / f"{name}.csv", columns, None)):
            change = row.values.get("neg_value", "any")
            if change not in CHANGES and tested:
                raise row.wrong("neg_value", f"one of {', '.join(CHANGES)}")
            ids = [row.whole(key, 0, LARGEST) for key in ("pos_image_id", "neg_image_id")]
            refs = tuple(self.refer(images / f"{image}.jpg") for image in ids)
            yield ItemRecord(f"{number:06d}-{ids[0]}-{ids[1]}", change, (row.text("sentence"),), refs)
