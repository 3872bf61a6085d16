"""Training: pairs/s of one optimiser step after the other."""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dataset.pair_dataset import PairDataset, collate
from engine.learner import Learner
from engine.transfer import build_loader, move_batch
from model.backbone.device import resolve_dtype
from script.speed import reference
from script.speed.flops import count_reference_training_pair, count_training_pair
from script.speed.inputs import World, build_reference, make_work, open_world
from script.speed.measure import GIB, Side, held_bytes, interleave, measure_matmul_peak, quartiles
from script.speed.memory import predict_training_peak
from script.speed.report import check_close, make_result
from utils.noise import identifier_seed

LOSS_TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}  # relative
GRADIENT_TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 2e-1, torch.float16: 5e-2}
GRADIENT_SCALE = 1024  # keeps half-precision gradients from vanishing while they are compared


class Trainer:
    """What both sides share: a prompt of their own, Adam, and an endless stream of the same batches."""

    def __init__(self, world: World, pairs: PairDataset):
        self.world, self.cfg, self.pairs = world, world.cfg, pairs
        self.prompt = copy.deepcopy(world.prompt).to(world.device)
        groups = self.prompt.param_groups(self.cfg.TRAIN.LR, self.cfg.TRAIN.LINEAR_LR_SCALE)
        self.learner = Learner(world.accelerator, self.prompt, torch.optim.Adam(groups), "constant", "", 1)
        self.batches = repeat(self.loader())

    def loader(self) -> DataLoader:
        return build_endless_loader(self.cfg, self.pairs, self.world.device)

    def compute_loss(self, batch: dict) -> Tensor:
        raise NotImplementedError

    def run(self, steps: int) -> int:
        """Optimiser steps; the number of pairs."""
        for _ in range(steps):
            batch = move_batch(next(self.batches), self.world.device)
            with self.world.accelerator.accumulate():
                self.learner.learn(self.compute_loss(batch))
        return steps * self.cfg.TRAIN.BATCH_SIZE

    def loss_and_gradient(self, batch: dict) -> tuple[Tensor, Tensor]:
        """Of one batch, with the prompt as it is; all gradients in one vector."""
        loss = self.compute_loss(move_batch(batch, self.world.device))
        gradient = torch.autograd.grad(GRADIENT_SCALE * loss, list(self.prompt.parameters()))
        return loss.detach(), torch.cat([part.flatten() for part in gradient])


class OurTrainer(Trainer):
    """A step as in train.py."""

    def __init__(self, world: World):
        before = held_bytes(world.device)
        super().__init__(world, world.pairs)
        self.matcher = world.method.under(self.prompt)
        self.static_bytes = held_bytes(world.device) - before

    def compute_loss(self, batch: dict) -> Tensor:
        return self.matcher.loss(batch, make_seeds(batch, self.cfg.SEED)).mean()


class PlainTrainer(Trainer):
    """The same step, plainly. Noise is drawn beforehand and costs nothing here."""

    def __init__(self, world: World):
        super().__init__(world, world.plain_pairs)
        dtype, cfg = resolve_dtype(self.cfg.PRECISION, world.device), self.cfg
        self.extractor, self.static_bytes = build_reference(world, cfg.TRAIN.TIMESTEP, cfg.TRAIN.ENSEMBLE, dtype)
        names = {ref.identifier for ref in self.pairs.benchmark.images()}
        self.noise = {name: world.noise(name, cfg.SEED, cfg.TRAIN.ENSEMBLE) for name in names}

    def compute_loss(self, batch: dict) -> Tensor:
        cfg, features = self.cfg.LOSS, []
        for b in range(len(batch["index"])):
            pair = {key: value[b : b + 1] for key, value in batch.items() if key.endswith("_condition")}
            tokens = self.prompt(pair)
            features.append(
                tuple(
                    self.extractor(batch[f"{side}_img"][b], tokens, self.noise[batch[f"{side}_identifier"][b]])
                    for side in ("src", "trg")
                )
            )
        points = batch["src_kps"], batch["trg_kps"], batch["kps_mask"].sum(dim=1).tolist()
        settings = {"beta": cfg.BETA, "kernel_size": cfg.KERNEL_SIZE, "sigma": cfg.SIGMA}
        return reference.compute_loss(features, *points, self.pairs.image_size, **settings)


def make_seeds(batch: dict, seed: int) -> Tensor:
    """(B, 2): one seed per image, so that the reference's draws can be made beforehand."""
    names = zip(batch["src_identifier"], batch["trg_identifier"], strict=True)
    return torch.tensor([[identifier_seed(seed, name) for name in pair] for pair in names])


def check(ours: Trainer, plain: Trainer, dtype: torch.dtype) -> dict:
    """Loss and prompt gradient of both sides on the first batch."""
    found = [side.loss_and_gradient(collate([side.pairs[i] for i in range(side.cfg.TRAIN.BATCH_SIZE)]))
             for side in (ours, plain)]  # fmt: skip
    (loss, gradient), (plain_loss, plain_gradient) = found
    differences = {
        "loss, relative": ((loss - plain_loss).abs() / plain_loss).item(),
        "gradient, relative": ((gradient - plain_gradient).norm() / plain_gradient.norm()).item(),
    }
    tolerances = LOSS_TOLERANCES[dtype], GRADIENT_TOLERANCES[dtype]
    return check_close(differences, dict(zip(differences, tolerances, strict=True)))


def measure_loader(trainer: Trainer, seconds: float = 1.0) -> float:
    """Pairs/s of the data loader alone, batches thrown away."""
    batches, count = repeat(trainer.loader()), 0
    next(batches)
    start = time.perf_counter()
    while time.perf_counter() < start + seconds:
        count += len(next(batches)["index"])
    return count / (time.perf_counter() - start)


def run_train(args: argparse.Namespace) -> dict:
    """The result of `benchmark.py train`."""
    with open_world(args) as world:
        cfg, dtype = world.cfg, resolve_dtype(world.cfg.PRECISION, world.device)
        ours, plain = OurTrainer(world), PlainTrainer(world)
        checked = check(ours, plain, dtype)
        sides = {
            "ours": Side(lambda: ours.run(args.steps), ours.static_bytes),
            "reference": Side(lambda: plain.run(args.steps), plain.static_bytes),
        }
        interleave(sides, args.repeats, args.warmup, world.device)
        peak = measure_matmul_peak(world.device, dtype)
        work = make_work(cfg, cfg.TRAIN.ENSEMBLE, world.pairs.benchmark.max_kps)
        flops = {"ours": count_training_pair(work), "reference": count_reference_training_pair(work)}
        extra = {
            "predicted_peak_gib": predict_training_peak(
                replace(work, batch_size=cfg.TRAIN.BATCH_SIZE), dtype, cfg.NETWORK.RECOMPUTE
            )
            / GIB
        }
        extra |= {"loader_pairs_per_s": {"ours": measure_loader(ours), "reference": measure_loader(plain)}}
        extra["loader_pairs_per_s"]["ours_over_training"] = (
            extra["loader_pairs_per_s"]["ours"] / quartiles(sides["ours"].rates)["median"]
        )
        return make_result(args, cfg, "pairs", sides, checked, world.device, flops, peak, **extra)


def build_endless_loader(cfg, pairs: PairDataset, device: torch.device) -> DataLoader:
    """Batches of TRAIN.BATCH_SIZE pairs, filled up from the beginning; its workers outlast a pass."""
    size, n_pairs, workers = cfg.TRAIN.BATCH_SIZE, len(pairs), cfg.DATASET.NUM_WORKERS
    batches = [[(first + i) % n_pairs for i in range(size)] for first in range(0, n_pairs, size)]
    return build_loader(pairs, device, workers, batch_sampler=batches, persistent_workers=workers > 0)


def repeat(loader: DataLoader) -> Iterator[dict]:
    """One pass after the other."""
    while True:
        yield from loader
