"""Testing: pairs/s from images (or caches) to PCK records, and images/s of the features alone."""

from __future__ import annotations

import argparse

import torch

from dataset.pair_dataset import ImageDataset, collate
from engine.evaluate import Share, evaluate, extract_images, match_pairs
from engine.precompute import unique_images
from engine.report import build_protocol
from engine.transfer import build_loader, move_batch
from model.backbone.device import resolve_dtype
from script.speed import reference
from script.speed.flops import count_image, count_reference_test_pair, count_test_pair
from script.speed.inputs import World, build_reference, make_work, open_world
from script.speed.measure import Side, held_bytes, interleave, measure_matmul_peak, quartiles
from script.speed.report import check_close, make_result

FEATURE_TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}  # relative
HIT_TOLERANCES = {torch.float32: 0.001, torch.bfloat16: 0.05, torch.float16: 0.05}  # share of keypoints
SPAIR_TEST_PAIRS, FULL_SIZE = 12_234, (768, 768)


class OurTester:
    """As in test.py."""

    def __init__(self, world: World):
        before = held_bytes(world.device)
        self.world, self.cfg = world, world.cfg
        self.matcher = world.method.at(world.cfg.TEST.TIMESTEP, world.cfg.TEST.ENSEMBLE)
        self.static_bytes = held_bytes(world.device) - before
        self.records: list[dict] = []

    def run(self) -> int:
        """Test every pair; the number of pairs."""
        cfg, pairs = self.cfg, self.world.pairs
        share = Share(cfg.EVAL.BATCH_SIZE, cfg.DATASET.NUM_WORKERS)
        self.records = evaluate(self.matcher, pairs, build_protocol(cfg), cfg.SEED, self.world.device, share)
        return len(self.records)

    @torch.no_grad()
    def extract_pair(self, position: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Both feature maps of a pair, (1, C, h, w) each."""
        pairs, cfg = self.world.pairs, self.cfg
        ((_, similarity),) = match_pairs(self.matcher, pairs, [position], cfg.SEED, self.world.device)
        return similarity.src_feat, similarity.trg_feat

    @torch.no_grad()
    def run_images(self) -> int:
        """Features of every image, as for a prompt that does not depend on the partner; the number of images."""
        cfg, pairs = self.cfg, self.world.pairs
        refs = unique_images([pairs])
        for _ in extract_images(self.matcher, pairs, refs, cfg.SEED, self.world.device, cfg.EVAL.BATCH_SIZE):
            pass
        return len(refs)


class PlainTester:
    """One image at a time; the maps of all images are kept if the prompt does not depend on the partner."""

    def __init__(self, world: World):
        self.world, self.cfg = world, world.cfg
        cfg, dtype = world.cfg, resolve_dtype(world.cfg.PRECISION, world.device)
        self.prompt = world.prompt.to(world.device)
        self.extractor, self.static_bytes = build_reference(world, cfg.TEST.TIMESTEP, cfg.TEST.ENSEMBLE, dtype)
        self.refs = unique_images([world.pairs])
        self.noise = {ref.identifier: world.noise(ref.identifier, cfg.SEED, cfg.TEST.ENSEMBLE) for ref in self.refs}
        self.hits: dict[tuple[int, str], list[int]] = {}

    @torch.no_grad()
    def run(self) -> int:
        """Test every pair; the number of pairs."""
        maps = {} if self.prompt.depends_on == "pair" else self.extract_images()
        for batch in build_loader(self.world.plain_pairs, self.world.device, batch_size=1):
            batch = move_batch(batch, self.world.device)
            names = batch["src_identifier"][0], batch["trg_identifier"][0]
            features = [maps[name] for name in names] if maps else self._extract(batch)
            self._judge(batch, *features)
        return len(self.world.plain_pairs)

    @torch.no_grad()
    def extract_pair(self, position: int) -> list[torch.Tensor]:
        """Both feature maps of a pair, (1, C, h, w) each."""
        return self._extract(move_batch(collate([self.world.plain_pairs[position]]), self.world.device))

    @torch.no_grad()
    def extract_images(self) -> dict[str, torch.Tensor]:
        """{identifier: (1, C, h, w)} of every image."""
        images = ImageDataset(self.refs, self.world.pairs.frame, categories=self.world.pairs.benchmark.categories)
        maps = {}
        for batch in build_loader(images, self.world.device, batch_size=1):
            batch, name = move_batch(batch, self.world.device), batch["identifier"][0]
            maps[name] = self.extractor(batch["img"][0], self.prompt(batch), self.noise[name])
        return maps

    def _extract(self, batch: dict) -> list[torch.Tensor]:
        tokens = self.prompt(batch)
        sides = [(batch[f"{side}_img"][0], batch[f"{side}_identifier"][0]) for side in ("src", "trg")]
        return [self.extractor(image, tokens, self.noise[name]) for image, name in sides]

    def _judge(self, batch: dict, src_feat: torch.Tensor, trg_feat: torch.Tensor) -> None:
        section, size = self.cfg.EVAL, self.world.pairs.image_size
        found = reference.localise(src_feat, trg_feat, batch["src_kps"][0], size, section.BETA, section.SIGMA)
        n_points, threshold = int(batch["kps_mask"].sum()), float(batch["pck_threshold"][0])
        for name, pred in found.items():
            hits = reference.count_hits(pred, batch["trg_kps"][0], n_points, threshold, section.ALPHAS)
            self.hits[int(batch["index"][0]), name] = hits


def check(ours: OurTester, plain: PlainTester, dtype: torch.dtype) -> dict:
    """Features of the first pair, and the hits of every pair, localiser and alpha."""
    ours.run()
    plain.run()
    features, plain_features = (torch.cat(list(side.extract_pair(0))) for side in (ours, plain))
    n_points = sum(record["n_points"] * len(record["hits"]) for record in ours.records)
    wrong = [
        max(abs(a - b) for a, b in zip(hits.values(), plain.hits[record["index"], name], strict=True))
        for record in ours.records
        for name, hits in record["hits"].items()
    ]
    differences = {
        "features, relative": ((features - plain_features).norm() / plain_features.norm()).item(),
        "hits that differ, share of keypoints": sum(wrong) / n_points,
    }
    tolerances = FEATURE_TOLERANCES[dtype], HIT_TOLERANCES[dtype]
    return check_close(differences, dict(zip(differences, tolerances, strict=True)))


def run_test(args: argparse.Namespace) -> dict:
    """The result of `benchmark.py test`."""
    with open_world(args, args.prompt) as world:
        cfg, dtype = world.cfg, resolve_dtype(world.cfg.PRECISION, world.device)
        ours, plain = OurTester(world), PlainTester(world)
        checked = check(ours, plain, dtype)
        sides = {name: Side(side.run, side.static_bytes) for name, side in (("ours", ours), ("reference", plain))}
        interleave(sides, args.repeats, args.warmup, world.device)
        extra = {"prompt": args.prompt, "ensemble": cfg.TEST.ENSEMBLE}
        if args.prompt != "CPM":  # images are shared by pairs, so that the arithmetic of a pair depends on the data
            return make_result(args, cfg, "pairs", sides, checked, world.device, **extra)
        if tuple(cfg.DATASET.IMAGE_SIZE) == FULL_SIZE:
            extra["minutes_for_spair_test"] = SPAIR_TEST_PAIRS / quartiles(sides["ours"].rates)["median"] / 60
        work = make_work(cfg, cfg.TEST.ENSEMBLE, world.pairs.benchmark.max_kps)
        flops = {"ours": count_test_pair(work), "reference": count_reference_test_pair(work)}
        peak = measure_matmul_peak(world.device, dtype)
        return make_result(args, cfg, "pairs", sides, checked, world.device, flops, peak, **extra)


def run_features(args: argparse.Namespace) -> dict:
    """The result of `benchmark.py features`: the empty prompt."""
    with open_world(args, "empty") as world:
        cfg, dtype = world.cfg, resolve_dtype(world.cfg.PRECISION, world.device)
        ours, plain = OurTester(world), PlainTester(world)
        features, plain_features = (torch.cat(list(side.extract_pair(0))) for side in (ours, plain))
        difference = ((features - plain_features).norm() / plain_features.norm()).item()
        checked = check_close({"features, relative": difference}, {"features, relative": FEATURE_TOLERANCES[dtype]})
        sides = {
            "ours": Side(ours.run_images, ours.static_bytes),
            "reference": Side(lambda: len(plain.extract_images()), plain.static_bytes),
        }
        interleave(sides, args.repeats, args.warmup, world.device)
        flops = dict(zip(sides, count_image(make_work(cfg, cfg.TEST.ENSEMBLE)), strict=True))
        peak = measure_matmul_peak(world.device, dtype)
        extra = {"ensemble": cfg.TEST.ENSEMBLE}
        return make_result(args, cfg, "images", sides, checked, world.device, flops, peak, **extra)
