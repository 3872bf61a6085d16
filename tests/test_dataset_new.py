"""A new benchmark is one class and one line in BENCHMARKS: everything else takes it as it is."""

import csv
from pathlib import Path

import numpy as np
import pytest

from dataset import BENCHMARKS, DatasetError, build_benchmark
from dataset.benchmark import Benchmark
from dataset.pair_dataset import PairDataset, collate
from dataset.parse import measure_image, read_csv
from dataset.record import ImageRef
from dataset.table import PairTable, TableBuilder
from tests.fixtures_dataset import draw_image


class Dots(Benchmark):
    """Pairs of images with one point each."""

    name, FOLDER, SPLITS = "dots", "dots", ("test",)
    LAYOUT = "dots/\n  pairs.csv    a,b,xa,ya,xb,yb"
    threshold_rule, max_kps = "image", 1

    def split_files(self) -> list[Path]:
        return [self.root / "pairs.csv"]

    def annotation_folders(self) -> list[Path]:
        return [self.root / "image"]

    def find_categories(self) -> list[str]:
        return ["dot"]

    def read(self) -> PairTable:
        builder = TableBuilder(self.threshold_rule, self.max_kps)
        for row in read_csv(self.split_files()[0], ("a", "b", "xa", "ya", "xb", "yb")):
            paths = [row.path(column) for column in "ab"]
            refs = [ImageRef(p.stem, str(p), "dot", measure_image(self.root / p, row.where)) for p in paths]
            kps = [np.array([[row.number(f"{axis}{column}") for axis in "xy"]]) for column in "ab"]
            images = [builder.add_image(ref, row.where) for ref in refs]
            builder.add_pair(
                f"{paths[0].stem}-{paths[1].stem}", "dot", images, kps, ["dot"], np.zeros((2, 4)), row.where
            )
        return builder.build()


@pytest.fixture
def dots(tmp_path, monkeypatch):
    monkeypatch.setitem(BENCHMARKS, "dots", Dots)
    for name in "pq":
        draw_image(tmp_path / "dots" / "image" / f"{name}.png", (40, 60))
    with open(tmp_path / "dots" / "pairs.csv", "w") as file:
        csv.writer(file).writerows([["a", "b", "xa", "ya", "xb", "yb"], ["image/p.png", "image/q.png", 30, 20, 15, 10]])
    return tmp_path / "dots"


def test_one_class_is_a_benchmark(dots):
    for _ in range(2):  # read, and from the index
        benchmark = build_benchmark("dots", dots, "test")
        batch = collate([PairDataset(benchmark, 80, with_images=True)[0]])
        assert batch["trg_kps"].tolist() == [[[20, 20]]] and batch["pck_threshold_orig"].tolist() == [60]
        assert batch["src_img"].shape == (1, 3, 80, 80) and benchmark[0].kps_ids == ("dot",)


def test_its_mistakes_are_named_like_those_of_the_others(dots):
    path = dots / "pairs.csv"
    path.write_text(path.read_text().replace("15", "150"))
    message = r"pairs.csv, line 2: keypoint dot of the target is \(150, 10\), outside its image of 60 x 40 px"
    with pytest.raises(DatasetError, match=message):
        build_benchmark("dots", dots, "test")
