"""What script/benchmark.py times: SD4Match and its parts, here and the plain way, on the same inputs."""

from __future__ import annotations

import argparse
import copy
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from config import ConfigError, load_config
from dataset import build_benchmark
from dataset.pair_dataset import PairDataset, collate, drop_padding
from engine.build import build_accelerator, build_method, build_pairs
from engine.check import check_config
from engine.evaluate import evaluate, extract_images
from engine.precompute import build_caches, unique_images
from engine.run import Learner, build_schedule
from engine.transfer import build_loader, move_batch
from mini.render.write import SPAIR_CLASSES, SPAIR_FULL_PAIRS, write_full_size_spair_index, write_spair
from model.backbone.device import resolve_device, resolve_dtype
from model.backbone.facts import condition_facts, find_configs
from model.backbone.load import load_stable_diffusion
from model.source import condition_source, find_condition, find_stable_diffusion
from script.speed import flops, reference
from utils.cache import FeatureCache
from utils.localise import FeatureSimilarity, localise
from utils.noise import identifier_seed
from utils.pck import PCKEvaluator, alpha_key

NETWORKS = {  # --network -> config file, settings
    "mini": ("config/mini/base.yaml", {}),
    "sd2-1-random": (None, {"NETWORK.INIT": "random", "NETWORK.ARCHITECTURE": "sd2-1"}),
    "sd1-5-random": ("config/spair/dift_sd1-5.yaml", {"NETWORK.INIT": "random"}),
}
UNTRAINED = {  # mode that trains nothing -> stem of the mini world's config file, settings
    "features": ("base", {"PROMPT.TYPE": "empty"}),
    "layers": ("geoaware_zero_shot", {"FEATURES.PROMPT": ""}),
    "rank": ("dsd", {"DATASET.NAME": "manifest", "METHOD.NAME": "dsd"}),
    "points": ("ldm_correspondence", {"METHOD.NAME": "ldm_correspondence"}),
}
CATEGORIES = ("bicycle", "car", "dog", "person")
SPLIT = "trn"
STEPS = 2  # optimiser steps of a round
SPAIR_IMAGES = 1800
FEATURES = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}  # relative differences that may be
GRADIENT = {torch.float32: 1e-4, torch.bfloat16: 2e-1, torch.float16: 5e-2}
HITS = {torch.float32: 0.001, torch.bfloat16: 0.05, torch.float16: 0.05}  # share of keypoints
GRADIENT_SCALE = 1024  # keeps half-precision gradients from vanishing while they are compared


@dataclass
class Side:
    """One way of doing the work: `run` does a round of so many units (pairs, images)."""

    run: Callable[[], object]
    units: int
    networks: Sequence[nn.Module] = ()  # on the device
    tflop: float = 0.0  # of a unit; 0 if it is not known
    rates: list[float] = field(default_factory=list)  # units/s of each round
    peak_bytes: int = 0  # on a GPU: its networks, and what a round takes on top


@dataclass
class Comparison:
    """Both sides, and how far their numbers lie apart: name -> (difference, the most that is tolerated)."""

    unit: str
    ours: Side
    plain: Side
    differences: Mapping[str, tuple[float, float]]

    @property
    def equal(self) -> bool:
        return all(difference <= tolerance for difference, tolerance in self.differences.values())


def make_config(args: argparse.Namespace, root: str):
    """The checked config of --network and the settings, which trains a CPM prompt; all files below `root`."""
    config_file, settings = NETWORKS.get(args.network, (None, {"NETWORK.FOLDER": args.network}))
    overrides = {**settings, "DATASET.NAME": "spair", "DATASET.ROOT": root, "OUTPUT_ROOT": f"{root}/output"}
    if args.mode in UNTRAINED:
        stem, more = UNTRAINED[args.mode]
        overrides |= more
        if args.network == "mini":
            config_file = f"config/mini/{stem}.yaml"
        elif args.mode == "layers":
            config_file = "config/spair/geoaware_zero_shot.yaml"
    cfg = check_config(load_config(config_file, args.opts, overrides), training=args.mode not in UNTRAINED)
    if cfg.PROMPT.KIND != "CPM":
        raise ConfigError("the benchmark trains PROMPT.KIND CPM; leave the key at its default")
    return cfg


def make_work(cfg, ensemble: int = 1) -> flops.Work:
    """The sizes of a config's arithmetic; reads JSON files only."""
    configs = find_configs(**find_stable_diffusion(cfg))
    known = condition_facts("DINO-Feat", **find_condition(cfg, "DINO-Feat"))
    shape = known or condition_source(cfg, "DINO-Feat").shape
    return flops.Work(configs, tuple(cfg.DATASET.IMAGE_SIZE), shape, cfg.METHOD.LAYER, cfg.PROMPT.CPM, ensemble)


class World:
    """Rendered pairs in two views: with caches on disk for this repository, with images for the reference."""

    def __init__(self, cfg, args: argparse.Namespace, timestep: int, ensemble: int) -> None:
        self.cfg, self.ensemble = cfg, ensemble
        self.accelerator, self.pairs = build_accelerator(cfg), render_pairs(cfg, args.pairs)
        self.device, self.size = self.accelerator.device, self.pairs.image_size
        self.dtype = resolve_dtype(cfg.PRECISION, self.device)
        categories, training = self.pairs.benchmark.image_categories, args.mode != "features"
        self.method = build_method(cfg, self.device, categories, training).at(timestep, ensemble)
        build_caches(cfg, (self.pairs,), self.method, self.accelerator)
        self.plain_pairs = with_images(self.pairs, Path(cfg.DATASET.ROOT) / "features.pt")
        networks = load_stable_diffusion(device=self.device, seed=cfg.SEED, **find_stable_diffusion(cfg))
        settings = {"layer": cfg.METHOD.LAYER, "timestep": timestep, "ensemble": ensemble, "dtype": self.dtype}
        self.extractor = reference.ReferenceExtractor(networks, **settings)
        self.refs, shape = unique_images([self.pairs]), make_work(cfg).latent_shape
        draw = partial(reference.draw_image_noise, ensemble=ensemble, shape=shape, device=self.device)
        self.noise = {ref.identifier: draw(identifier_seed(cfg.SEED, ref.identifier)) for ref in self.refs}

    def extract_plainly(self, batch: dict, b: int, prompt: nn.Module) -> tuple[Tensor, Tensor]:
        """Both maps (1, C, h, w) of the b-th pair of a batch."""
        tokens = prompt({key: value[b : b + 1] for key, value in batch.items() if key.endswith("_condition")})
        sides = ((batch[f"{side}_img"][b], batch[f"{side}_identifier"][b]) for side in ("src", "trg"))
        src_feat, trg_feat = (self.extractor(image, tokens, self.noise[name]) for image, name in sides)
        return src_feat, trg_feat

    def take(self, pairs: PairDataset, positions: Sequence[int]) -> dict:
        """A batch on the device."""
        return move_batch(collate([pairs[i] for i in positions]), self.device)

    def seeds(self, batch: dict) -> Tensor:
        """(B, 2), from the names of the images, so that the reference's draws can be made beforehand."""
        names = zip(batch["src_identifier"], batch["trg_identifier"], strict=True)
        return torch.tensor([[identifier_seed(self.cfg.SEED, name) for name in pair] for pair in names])

    def compare_features(self) -> dict[str, tuple[float, float]]:
        """Of the first pair."""
        with torch.no_grad():
            batch, plain_batch = (self.take(pairs, [0]) for pairs in (self.pairs, self.plain_pairs))
            ours = torch.cat(self.method.pair_features(batch, self.seeds(batch)))
            plain = torch.cat(self.extract_plainly(plain_batch, 0, self.method.prompt))
        return {"features, relative": (relative(ours, plain), FEATURES[self.dtype])}


def compare_training(cfg, args: argparse.Namespace) -> Comparison:
    world = World(cfg, args, cfg.TRAIN.TIMESTEP, cfg.TRAIN.ENSEMBLE)
    method, size = world.method, cfg.TRAIN.BATCH_SIZE
    prompt = copy.deepcopy(method.prompt)
    optimizer = method.build_optimizer(cfg.TRAIN.LR, cfg.TRAIN.LINEAR_LR_SCALE)
    learner = Learner(world.accelerator, method.trainable, optimizer, build_schedule("constant", optimizer, 1))
    plain_optimizer = torch.optim.Adam(prompt.param_groups(cfg.TRAIN.LR, cfg.TRAIN.LINEAR_LR_SCALE))
    settings = {"beta": cfg.LOSS.BETA, "kernel_size": cfg.LOSS.KERNEL_SIZE, "sigma": cfg.LOSS.SIGMA}

    def compute_loss(batch: dict) -> Tensor:
        return method.loss(batch, world.seeds(batch)).mean()

    def compute_plain_loss(batch: dict) -> Tensor:
        features = [world.extract_plainly(batch, b, prompt) for b in range(size)]
        points = batch["src_kps"], batch["trg_kps"], batch["kps_mask"].sum(dim=1).tolist()
        return reference.compute_loss(features, *points, world.size, **settings)

    def step() -> None:
        for _ in range(STEPS):
            with world.accelerator.accumulate():
                learner.learn(compute_loss(move_batch(next(batches), world.device)))

    def plain_step() -> None:
        for _ in range(STEPS):
            compute_plain_loss(move_batch(next(plain_batches), world.device)).backward()
            plain_optimizer.step()
            plain_optimizer.zero_grad()

    first = [i % len(world.pairs) for i in range(size)]
    loss = compute_loss(world.take(world.pairs, first))
    plain_loss = compute_plain_loss(world.take(world.plain_pairs, first))
    gradients = (
        torch.autograd.grad(GRADIENT_SCALE * value, list(learned.parameters()))
        for value, learned in ((loss, method.prompt), (plain_loss, prompt))
    )
    flat, plain_flat = (torch.cat([part.flatten() for part in parts]) for parts in gradients)
    differences = {
        "loss, relative": (relative(loss, plain_loss), GRADIENT[world.dtype]),
        "gradient, relative": (relative(flat, plain_flat), GRADIENT[world.dtype]),
    }
    batches, plain_batches = (read_batches(cfg, pairs, count()) for pairs in (world.pairs, world.plain_pairs))
    ours, plain = (count / flops.TERA for count in flops.count_training_pair(make_work(cfg, world.ensemble)))
    ours = Side(step, STEPS * size, [method], ours)
    plain = Side(plain_step, STEPS * size, [world.extractor], plain)
    return Comparison("pairs", ours, plain, differences)


def compare_testing(cfg, args: argparse.Namespace) -> Comparison:
    world, settings = World(cfg, args, cfg.TEST.TIMESTEP, cfg.TEST.ENSEMBLE), (cfg.EVAL.BETA, cfg.EVAL.SIGMA)

    def score() -> pd.DataFrame:
        return evaluate(cfg, world.method, world.pairs, world.device)

    @torch.no_grad()
    def score_plainly() -> Counter:
        hits = Counter()
        for batch in build_loader(world.plain_pairs):
            batch = move_batch(batch, world.device)
            maps = world.extract_plainly(batch, 0, world.method.prompt)
            found = reference.localise(*maps, batch["src_kps"][0], world.size, *settings)
            judge_plainly(hits, batch, 0, found, cfg.EVAL.ALPHAS)
        return hits

    differences = world.compare_features() | {"PCK": (compare_hits(score(), score_plainly()), HITS[world.dtype])}
    ours, plain = (count / flops.TERA for count in flops.count_test_pair(make_work(cfg, world.ensemble)))
    ours = Side(score, len(world.pairs), [world.method], ours)
    plain = Side(score_plainly, len(world.pairs), [world.extractor], plain)
    return Comparison("pairs", ours, plain, differences)


def compare_features(cfg, args: argparse.Namespace) -> Comparison:
    world = World(cfg, args, cfg.TEST.TIMESTEP, cfg.TEST.ENSEMBLE)

    @torch.no_grad()
    def extract() -> None:
        for _ in extract_images(world.method, world.pairs, world.refs, cfg.SEED, world.device, cfg.EVAL.BATCH_SIZE):
            pass

    @torch.no_grad()
    def extract_plainly() -> None:
        for position in range(len(world.plain_pairs)):
            world.extract_plainly(world.take(world.plain_pairs, [position]), 0, world.method.prompt)

    work = make_work(cfg)
    parts = {name: forward / flops.TERA for name, (forward, _) in flops.count_parts(work).items()}
    plain_tflop = parts["VAE encoder"] + parts["text transformer"] + world.ensemble * parts["whole UNet"]
    ours = Side(extract, len(world.refs), [world.method], world.ensemble * parts[flops.name_cut(work)])
    plain = Side(extract_plainly, 2 * len(world.pairs), [world.extractor], plain_tflop)
    return Comparison("images", ours, plain, world.compare_features())


def compare_localisers(cfg, args: argparse.Namespace) -> Comparison:
    """Random maps of the network's size: the target is the source, shifted, with noise."""
    section, device, work = cfg.EVAL, resolve_device(cfg.DEVICE), make_work(cfg)
    generator, (height, width), n_pairs = torch.Generator().manual_seed(cfg.SEED), work.image_size, args.pairs
    source = torch.randn(n_pairs, *work.facts.feature_shape(work.image_size, work.layer), generator=generator)
    target = source.roll((2, 3), dims=(2, 3)) + torch.randn(source.shape, generator=generator)
    source, target = source.to(device), target.to(device)
    kps = torch.rand(2, n_pairs, work.n_points, 2, generator=generator) * torch.tensor([width - 1, height - 1])
    mask = torch.arange(work.n_points) < torch.randint(3, 14, (n_pairs, 1), generator=generator)
    whole = {
        "index": torch.arange(n_pairs),
        **{key: ["any"] * n_pairs for key in ("pair_id", "category", "src_identifier", "trg_identifier")},
        **{"src_kps": kps[0].to(device), "trg_kps": kps[1].to(device), "kps_mask": mask.to(device)},
        "pck_threshold": torch.full((n_pairs,), 0.5 * max(height, width)),
    }
    settings = {"image_size": work.image_size, "beta": cfg.EVAL.BETA, "sigma": cfg.EVAL.SIGMA}

    def score() -> pd.DataFrame:
        evaluator = PCKEvaluator(section.LOCALISERS, section.ALPHAS)
        for first in range(0, n_pairs, cfg.EVAL.BATCH_SIZE):
            part = slice(first, first + cfg.EVAL.BATCH_SIZE)
            batch = drop_padding({key: value[part] for key, value in whole.items()})
            similarity = FeatureSimilarity(source[part], target[part])
            evaluator.update(batch, localise(similarity, batch["src_kps"], names=section.LOCALISERS, **settings))
        return evaluator.scores()

    def score_plainly() -> Counter:
        hits = Counter()
        for b in range(n_pairs):
            found = reference.localise(source[b : b + 1], target[b : b + 1], whole["src_kps"][b], **settings)
            judge_plainly(hits, whole, b, found, section.ALPHAS)
        return hits

    differences = {"PCK": (compare_hits(score(), score_plainly()), 1e-9)}
    return Comparison("pairs", Side(score, n_pairs), Side(score_plainly, n_pairs), differences)


def compare_loaders(cfg, args: argparse.Namespace) -> Comparison:
    """Caches of random arrays of the network's size, against images and one file of conditions."""
    root, pairs, work = Path(cfg.DATASET.ROOT), render_pairs(cfg, args.pairs), make_work(cfg)
    channels, *size = work.latent_shape
    generator = torch.Generator().manual_seed(cfg.SEED)
    for key, shape in {"posterior": (2 * channels, *size), "condition": work.condition_shape}.items():
        pairs.caches[key] = FeatureCache(root / key, {"what": key}, shape)
        for ref in unique_images([pairs]):
            pairs.caches[key].put(ref.identifier, "0", torch.randn(shape, generator=generator))
    plain_pairs = with_images(pairs, root / "features.pt")
    different = not torch.equal(pairs[0]["src_condition"], plain_pairs[0]["src_condition"])
    n_batches = -(-args.pairs // cfg.TRAIN.BATCH_SIZE)

    def read(data: PairDataset) -> None:
        for _ in read_batches(cfg, data, range(n_batches)):
            pass

    ours, plain = (Side(partial(read, data), n_batches * cfg.TRAIN.BATCH_SIZE) for data in (pairs, plain_pairs))
    return Comparison("pairs", ours, plain, {"arrays that differ": (float(different), 0.0)})


def compare_index(cfg, args: argparse.Namespace) -> Comparison:
    """All three splits; the reference reads every annotation at each start."""
    counts = {split: count // args.scale for split, count in SPAIR_FULL_PAIRS.items()}
    images = min(100, 5 + math.isqrt(max(counts.values()) // len(SPAIR_CLASSES)))  # of a category: enough for the pairs
    write_full_size_spair_index(cfg.DATASET.ROOT, counts, images=images)
    root = Path(cfg.DATASET.ROOT) / "SPair-71k"
    for path in (root / "ImageAnnotation").glob("*/*.json"):  # the index wants to see them
        image = root / "JPEGImages" / path.parent.name / f"{path.stem}.jpg"
        image.parent.mkdir(parents=True, exist_ok=True)
        image.touch()

    def open_splits() -> list:
        return [build_benchmark("spair", root, split) for split in counts]

    opened, read = open_splits(), reference.read_annotations(root, counts)
    points = sum(benchmark[i].src_kps.sum() for benchmark in opened for i in range(len(benchmark)))
    plain_points = sum(np.sum(record["src_kps"]) for record in read)
    differences = {
        "pairs": (float(abs(sum(map(len, opened)) - len(read))), 0.0),
        "sum of coordinates, relative": (float(abs(points - plain_points) / plain_points), 1e-6),
    }
    ours, plain = Side(open_splits, len(read)), Side(partial(reference.read_annotations, root, counts), len(read))
    return Comparison("pairs", ours, plain, differences)


def compare_caches(cfg, args: argparse.Namespace) -> Comparison:
    """A round opens the DINOv2 features of a data set and reads each once, shuffled."""
    root, shape = Path(cfg.DATASET.ROOT), make_work(cfg).condition_shape
    generator, n_images = torch.Generator().manual_seed(cfg.SEED), max(1, SPAIR_IMAGES // args.scale)
    names = [str(i) for i in torch.randperm(n_images, generator=generator).tolist()]
    features = {name: torch.randn(shape, generator=generator).half() for name in names}
    open_ours = partial(FeatureCache, root, {"what": "benchmark"}, shape)
    open_plain, cache = partial(torch.load, root / "features.pt"), open_ours()
    for name, feature in features.items():
        cache.put(name, "0", feature)
    torch.save(features, root / "features.pt")
    wrong = sum(not torch.equal(cache.get(name), features[name]) for name in names)

    def read(open_cache: Callable) -> None:
        cache = open_cache()
        for name in names:
            cache.get(name).clone()  # as a batch would hold it

    ours, plain = (Side(partial(read, opened), n_images) for opened in (open_ours, open_plain))
    return Comparison("images", ours, plain, {"arrays that differ": (float(wrong), 0.0)})


def render_pairs(cfg, n_pairs: int) -> PairDataset:
    """A rendered benchmark of about so many pairs."""
    per_category = -(-n_pairs // len(CATEGORIES))
    write_spair(cfg.DATASET.ROOT, {SPLIT: 4 + per_category}, {SPLIT: per_category}, CATEGORIES)
    return build_pairs(cfg, SPLIT)


def with_images(pairs: PairDataset, path: Path) -> PairDataset:
    """The same pairs as the reference reads them: images, and all conditions in one file."""
    caches = {}
    if (cache := pairs.caches.get("condition")) is not None:
        torch.save({ref.identifier: cache.get(ref.identifier) for ref in unique_images([pairs])}, path)
        caches["condition"] = torch.load(path)
    return PairDataset(pairs.benchmark, pairs.frame, caches, with_images=True)


def read_batches(cfg, pairs: PairDataset, numbers: Iterable[int]) -> Iterator[dict]:
    """Batches of TRAIN.BATCH_SIZE pairs, which begin anew when all have been read."""
    size = cfg.TRAIN.BATCH_SIZE
    batches = ([(number * size + i) % len(pairs) for i in range(size)] for number in numbers)
    return iter(build_loader(pairs, cfg.DATASET.NUM_WORKERS, batches=batches))


def judge_plainly(hits: Counter, batch: Mapping, b: int, found: Mapping[str, Tensor], alphas: Sequence[float]) -> None:
    """Count the points of the b-th pair, and by localiser and alpha those that were found."""
    n_points, threshold = int(batch["kps_mask"][b].sum()), float(batch["pck_threshold"][b])
    hits["n_points"] += n_points
    for name, pred in found.items():
        counts = reference.count_hits(pred, batch["trg_kps"][b], n_points, threshold, alphas)
        hits.update({f"{name}@{alpha_key(alpha)}": count for alpha, count in zip(alphas, counts, strict=True)})


def compare_hits(scores: pd.DataFrame, hits: Counter) -> float:
    """The largest difference of a share of correct keypoints."""
    return max(abs(scores[key].sum() - count) for key, count in hits.items()) / hits["n_points"]


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()
