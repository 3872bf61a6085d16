"""What needs no network: localisers with PCK, the index of a benchmark, the feature cache."""

from __future__ import annotations

import argparse
import json
import math
import shutil
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dataset import build_benchmark
from dataset.pair_dataset import PairDataset, drop_padding
from engine.build import build_pairs
from engine.precompute import unique_images
from engine.report import build_protocol
from mini.render.write import SPAIR_CLASSES, SPAIR_FULL_PAIRS, write_full_size_spair_index
from model.backbone.device import resolve_device
from model.backbone.facts import compute_facts
from script.speed import reference
from script.speed.inputs import SPLIT, keep_condition, make_config, make_work, render_pairs
from script.speed.measure import Side, interleave, quartiles
from script.speed.reference import DictCache
from script.speed.report import check_close, make_result
from script.speed.training import build_endless_loader, repeat
from utils.cache import FeatureCache
from utils.localise import FeatureSimilarity, localise
from utils.pck import PCKEvaluator

MAX_KPS = 30  # SPair's padding
VALID_KPS = (3, 13)  # range of the keypoints of a pair
SPAIR_IMAGES = 1800
CPU = torch.device("cpu")


def make_matching_batch(cfg, shape: tuple[int, int, int], n_pairs: int, device: torch.device) -> tuple[dict, Tensor]:
    """A pair batch with random keypoints, and maps (2, B, C, h, w): the target is the source, shifted, with noise."""
    generator = torch.Generator().manual_seed(cfg.SEED)
    source = torch.randn(n_pairs, *shape, generator=generator)
    target = source.roll((2, 3), dims=(2, 3)) + torch.randn(source.shape, generator=generator)
    height, width = cfg.DATASET.IMAGE_SIZE
    kps = torch.rand(2, n_pairs, MAX_KPS, 2, generator=generator) * torch.tensor([width - 1, height - 1])
    n_points = torch.randint(VALID_KPS[0], VALID_KPS[1] + 1, (n_pairs, 1), generator=generator)
    batch = {
        "index": torch.arange(n_pairs),
        **{key: ["any"] * n_pairs for key in ("pair_id", "category", "src_identifier", "trg_identifier")},
        "src_kps": kps[0].to(device),
        "trg_kps": kps[1].to(device),
        "kps_mask": (torch.arange(MAX_KPS) < n_points).to(device),
        "pck_threshold": torch.full((n_pairs,), 0.5 * max(height, width)),
    }
    return batch, torch.stack([source, target]).to(device)


class Matching:
    """Four localisers and PCK records of the same maps, both ways."""

    def __init__(self, cfg, batch: dict, maps: Tensor):
        self.cfg, self.batch, self.maps, self.protocol = cfg, batch, maps, build_protocol(cfg)
        self.size = tuple(cfg.DATASET.IMAGE_SIZE)
        self.settings = {"beta": cfg.EVAL.BETA, "sigma": cfg.EVAL.SIGMA}
        self.n_points = batch["kps_mask"].sum(dim=1).tolist()

    def run(self) -> list[dict]:
        """Records, EVAL.BATCH_SIZE pairs at a time."""
        evaluator = PCKEvaluator(self.protocol.localisers, self.protocol.alphas)
        for first in range(0, len(self.n_points), self.cfg.EVAL.BATCH_SIZE):
            part = slice(first, first + self.cfg.EVAL.BATCH_SIZE)
            batch = drop_padding({key: value[part] for key, value in self.batch.items()})
            evaluator.update(batch, self.predict(batch["src_kps"], self.maps[:, part]))
        return evaluator.records()

    def predict(self, src_kps: Tensor, maps: Tensor) -> dict[str, Tensor]:
        return localise(FeatureSimilarity(*maps), src_kps, self.size, self.protocol.localisers, **self.settings)

    def run_plainly(self) -> list[dict]:
        """{localiser: hits} of one pair after the other."""
        found = []
        for b, n_points in enumerate(self.n_points):
            predictions = self.predict_plainly(self.batch["src_kps"][b], self.maps[:, b : b + 1])
            truth, threshold = self.batch["trg_kps"][b], float(self.batch["pck_threshold"][b])
            judge = (truth, n_points, threshold, self.protocol.alphas)
            found.append({name: reference.count_hits(pred, *judge) for name, pred in predictions.items()})
        return found

    def predict_plainly(self, src_kps: Tensor, maps: Tensor) -> dict[str, Tensor]:
        return reference.localise(*maps, src_kps, self.size, **self.settings)

    def check(self) -> dict:
        """Predictions of the first pair in float64, and all hits."""
        kps, maps = self.batch["src_kps"][:1].double(), self.maps[:, :1].double()
        exact, plain = self.predict(kps, maps), self.predict_plainly(kps[0], maps)
        worst = max((exact[name][0] - plain[name]).abs().max().item() for name in exact)
        pairs = zip(self.run(), self.run_plainly(), strict=True)
        wrong = [list(record["hits"][name].values()) != hits[name] for record, hits in pairs for name in hits]
        differences = {"predictions in float64, px": worst, "results that differ, share": sum(wrong) / len(wrong)}
        return check_close(differences, dict(zip(differences, (1e-6, 0.0), strict=True)))


def run_localise(args: argparse.Namespace) -> dict:
    """The result of `benchmark.py localise`."""
    cfg = make_config(args)
    device, work = resolve_device(cfg.DEVICE), make_work(cfg)
    shape = compute_facts(work.configs).feature_shape(work.image_size, work.layer)
    matching = Matching(cfg, *make_matching_batch(cfg, shape, args.pairs, device))
    checked = matching.check()
    sides = {"ours": Side(lambda: len(matching.run())), "reference": Side(lambda: len(matching.run_plainly()))}
    interleave(sides, args.repeats, args.warmup, device)
    return make_result(args, cfg, "pairs", sides, checked, device, maps=list(shape), keypoints=list(VALID_KPS))


def run_index(args: argparse.Namespace) -> dict:
    """The result of `benchmark.py index`: all three splits; the reference reads every annotation at each start."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        pairs = {split: count // args.scale for split, count in SPAIR_FULL_PAIRS.items()}
        write_full_size_spair_index(folder, pairs, images=_needed_images(max(pairs.values())))
        root = Path(folder) / "SPair-71k"
        _pretend_images(root)
        cold_seconds = []
        for _ in range(args.repeats):
            shutil.rmtree(root / ".index", ignore_errors=True)
            start = time.perf_counter()
            opened = _open_splits(root, pairs)
            cold_seconds.append(time.perf_counter() - start)
        plain = _read_splits(root, pairs)
        points = sum(benchmark[i].src_kps.sum() for benchmark in opened for i in range(len(benchmark)))
        plain_points = sum(np.sum(record["src_kps"]) for record in plain)
        n_pairs = sum(map(len, opened))
        differences = {
            "pairs": float(abs(n_pairs - len(plain))),
            "sum of coordinates, relative": float(abs(points - plain_points) / plain_points),
        }
        checked = check_close(differences, dict(zip(differences, (0.0, 1e-6), strict=True)))
        sides = {
            "ours": Side(lambda: sum(map(len, _open_splits(root, pairs)))),
            "reference": Side(lambda: len(_read_splits(root, pairs))),
        }
        interleave(sides, args.repeats, args.warmup, CPU)
        seconds = {"cold": quartiles(cold_seconds)["median"]}
        seconds |= {
            name: n_pairs / quartiles(sides[side].rates)["median"]
            for name, side in (("warm", "ours"), ("reference", "reference"))
        }
        return make_result(args, None, "pairs", sides, checked, CPU, seconds=seconds, pairs=n_pairs)


def run_loader(args: argparse.Namespace) -> dict:
    """The result of `benchmark.py loader`: the data loader alone, on caches of random rows of full size."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as root:
        cfg = make_config(args, root)
        render_pairs(root, args.pairs)
        pairs, work = build_pairs(cfg, SPLIT), make_work(cfg)
        channels, *size = work.latent_shape
        shapes = {"posterior": (2 * channels, *size), "condition": work.condition_shape}
        pairs.caches.update({key: _write_random(root, key, shape, pairs) for key, shape in shapes.items()})
        plain = PairDataset(pairs.benchmark, pairs.frame, keep_condition(pairs, root), with_images=True)
        same = torch.equal(pairs[0]["src_condition"], plain[0]["src_condition"])
        checked = check_close({"rows that differ": float(not same)}, {"rows that differ": 0.0})
        device = resolve_device(cfg.DEVICE)
        batches = {name: repeat(build_endless_loader(cfg, data, device)) for name, data in
                   (("ours", pairs), ("reference", plain))}  # fmt: skip
        sides = {name: Side(partial(_read_batches, stream, args.pairs)) for name, stream in batches.items()}
        interleave(sides, args.repeats, args.warmup, device)
        return make_result(args, cfg, "pairs", sides, checked, device)


def run_cache(args: argparse.Namespace) -> dict:
    """The result of `benchmark.py cache`: a round opens the features of a data set and reads each once, shuffled."""
    cfg = make_config(args)
    shape, n_images = make_work(cfg).condition_shape, max(1, SPAIR_IMAGES // args.scale)
    generator = torch.Generator().manual_seed(cfg.SEED)
    features = {str(i): torch.randn(shape, generator=generator).half() for i in range(n_images)}
    order = [str(i) for i in torch.randperm(n_images, generator=generator).tolist()]
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        path, stamp = Path(folder) / "features.pt", {"what": "benchmark"}
        start = time.perf_counter()
        cache = FeatureCache(folder, stamp, shape)
        for name, array in features.items():
            cache.put(name, "0", array)
        written = time.perf_counter()
        torch.save(features, path)
        seconds = {"write": written - start, "write_reference": time.perf_counter() - written}
        caches = FeatureCache(folder, stamp, shape), DictCache(path)
        wrong = sum(not torch.equal(*(cache.get(name) for cache in caches)) for name in order)
        checked = check_close({"rows that differ": float(wrong)}, {"rows that differ": 0.0})
        del caches, features
        sides = {
            "ours": Side(lambda: _read_rows(FeatureCache(folder, stamp, shape), order)),
            "reference": Side(lambda: _read_rows(DictCache(path), order)),
        }
        interleave(sides, args.repeats, args.warmup, CPU)
        return make_result(args, cfg, "rows", sides, checked, CPU, rows=n_images, shape=list(shape), seconds=seconds)


def _write_random(root: str, key: str, shape: tuple[int, ...], pairs: PairDataset) -> FeatureCache:
    """A cache of random rows for the images of some pairs."""
    generator = torch.Generator().manual_seed(0)
    cache = FeatureCache(root, {"what": key}, shape)
    for ref in unique_images([pairs]):
        cache.put(ref.identifier, "0", torch.randn(shape, generator=generator))
    return cache


def _read_batches(batches: Iterator[dict], n_pairs: int) -> int:
    """Batches until so many pairs are read; their number."""
    count = 0
    while count < n_pairs:
        count += len(next(batches)["index"])
    return count


def _needed_images(n_pairs: int) -> int:
    """Images per category, 100 at full size, that give enough different pairs."""
    return min(100, 5 + math.isqrt(n_pairs // len(SPAIR_CLASSES)))


def _pretend_images(root: Path) -> None:
    """Empty files where the index expects images."""
    for path in (root / "ImageAnnotation").glob("*/*.json"):
        image = root / "JPEGImages" / path.parent.name / f"{path.stem}.jpg"
        image.parent.mkdir(parents=True, exist_ok=True)
        image.touch()


def _open_splits(root: Path, splits) -> list:
    return [build_benchmark("spair", root, split) for split in splits]


def _read_splits(root: Path, splits) -> list[dict]:
    records = []
    for split in splits:
        for line in (root / "Layout" / "large" / f"{split}.txt").read_text().split():
            record = json.loads((root / "PairAnnotation" / split / f"{line}.json").read_text())
            for key in ("src_kps", "trg_kps", "src_bndbox", "trg_bndbox"):
                record[key] = np.array(record[key], dtype=np.float32)
            records.append(record)
    return records


def _read_rows(cache, order: list[str]) -> int:
    """Copies of all rows, as a batch would hold them."""
    for name in order:
        cache.get(name).clone()
    return len(order)
