"""Benchmarks on disk -> pairs of images with keypoints, or items of texts and images.

`dataset.pair_dataset` and `dataset.item_dataset` make tensors of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dataset.ap10k import AP10K
from dataset.benchmark import Benchmark
from dataset.comvg import ComVG
from dataset.cub import CUB
from dataset.custom import Custom
from dataset.error import DatasetError, MissingDataError, choose
from dataset.manifest import Manifest
from dataset.pfpascal import PFPascal
from dataset.pfwillow import PFWillow
from dataset.record import ImageRef, PairRecord
from dataset.refcocog import RefCOCOg
from dataset.spair import SPair, SPairU
from dataset.split import Split, fill_command
from dataset.vqa import VQABinary, VQAOther
from dataset.winoground import Winoground

BENCHMARKS: dict[str, type[Split]] = {
    "spair": SPair,
    "pfpascal": PFPascal,
    "pfwillow": PFWillow,
    "ap10k": AP10K,
    "spairu": SPairU,
    "cub": CUB,
    "custom": Custom,
    "comvg": ComVG,
    "refcocog": RefCOCOg,
    "vqa_other": VQAOther,
    "vqa_binary": VQABinary,
    "winoground": Winoground,
    "manifest": Manifest,
}

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "DatasetError",
    "ImageRef",
    "MissingDataError",
    "PairRecord",
    "build_benchmark",
    "fill_command",
]


def build_benchmark(name: str, root: str | Path, split: str, category: str = "all", **options: Any) -> Split:
    """Opens a split of the benchmark `name` (a key of BENCHMARKS) in the folder `root`; options: see `Split`."""
    return BENCHMARKS[choose(name, BENCHMARKS, "data set")](root, split, category, **options)
