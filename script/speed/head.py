"""Training of GeoAware-SC's post-processor from cached maps against the plain way of its release.

Plain: single-precision files without a digest, one image after the other through the network, and the soft-arg-max of
every source cell, of which the keypoints' rows are taken afterwards.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from config import ConfigError, change_config
from dataset.pair_dataset import collate
from engine.transfer import move_batch
from loss.pose_variants import match_mirrored, mirror
from loss.soft_argmax_error import SoftArgmaxError
from model.backbone.device import resolve_device
from model.head import AggregationNetwork
from model.method.geoaware import READS, GeoAware
from model.source import MIRRORED
from script.speed.sides import Comparison, Side, relative
from utils.cache import FeatureCache
from utils.noise import seeded

DIMS = {"s3": (640, 1), "s4": (1280, 2), "s5": (1280, 4), "dino": (768, 1)}  # channels, cells of a side per cell
PATCHES, PATCH = 60, 14  # cells of a side, px of a cell
POINTS, SHOWN = 30, 12  # columns of keypoints, how many there are
BETA = 0.02


def compare_heads(cfg, args: argparse.Namespace) -> Comparison:
    """A round is args.pairs steps of one pair, with maps of the original's sizes, or 1/SCALE of its sides."""
    side, device = PATCHES // args.scale, resolve_device(cfg.DEVICE)
    if PATCHES % args.scale or side % 4:
        raise ConfigError(f"--scale {args.scale}: 60 / SCALE must be a multiple of 4, such as 60, 20 or 12")
    root, generator = Path(cfg.DATASET.ROOT), torch.Generator().manual_seed(cfg.SEED)
    caches = write_maps(root, side, 2 * args.pairs, generator)
    points = [make_points(side * PATCH, generator) for _ in range(args.pairs)]
    with seeded(cfg.SEED):
        head = AggregationNetwork([channels for channels, _ in DIMS.values()]).to(device)
    exact = change_config(cfg, {"GEOAWARE.NOISE": 0.0, "GEOAWARE.DROPOUT": 0.0})
    sides, losses, gradients = [], [], []

    def read(load: Callable[[str, str], object], number: int) -> dict:
        names = (("src", 2 * number), ("trg", 2 * number + 1))
        maps = {f"{name}_{key}": load(key, str(image)) for name, image in names for key in caches}
        return move_batch(collate([points[number] | maps]), device)

    for network, compute, load in (
        (head, compute_ours, lambda key, image: caches[key].get(image)),
        (copy.deepcopy(head), compute_plainly, lambda key, image: torch.load(root / f"{key}-{image}.pt")),
    ):
        losses.append(compute(build_method(network, side * PATCH, exact), read(load, 0), 0))
        found = torch.autograd.grad(losses[-1].sum(), list(network.parameters()), allow_unused=True)
        gradients.append(torch.cat([part.flatten() for part in found if part is not None]))
        method = build_method(network, side * PATCH, cfg)
        step = partial(learn, method, method.build_optimizer(1e-6, 1.0), compute, partial(read, load), args.pairs)
        sides.append(Side(step, args.pairs, [network]))
    differences = {"loss, relative": (relative(*losses), 1e-4), "gradient, relative": (relative(*gradients), 1e-2)}
    return Comparison("pairs", *sides, differences)


def build_method(head: AggregationNetwork, side: int, cfg) -> GeoAware:
    method = GeoAware((side, side), list(DIMS)[:3], head)
    method.learn_as(cfg.GEOAWARE)
    method.objective = SoftArgmaxError(BETA)
    return method


def learn(method: GeoAware, optimizer, compute: Callable[..., Tensor], read: Callable[[int], dict], count: int) -> None:
    """A step of each of so many pairs."""
    for number in range(count):
        compute(method, read(number), number).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def compute_ours(method: GeoAware, batch: Mapping, number: int) -> Tensor:
    return method.loss(batch, torch.tensor([[2 * number, 2 * number + 1]]))


def write_maps(root: Path, side: int, count: int, generator: torch.Generator) -> dict[str, FeatureCache]:
    """Random maps of so many images and of their mirror images, in our caches and as plain files."""
    shapes = {name: (channels, side // cells, side // cells) for name, (channels, cells) in DIMS.items()}
    layers = {name: shape for name, shape in shapes.items() if name != "dino"}
    caches = {}
    for key in (f"{name}{end}" for end in ("", MIRRORED) for name in READS):
        shape = shapes["dino"] if key.startswith("dino") else layers
        cache = caches[key] = FeatureCache(root, {"what": key}, shape)
        for number in range(count):
            maps = {name: torch.randn(one, generator=generator).half() for name, one in layers.items()}
            entry = torch.randn(shape, generator=generator).half() if key.startswith("dino") else maps
            cache.put(str(number), "0", entry)
            plain = entry.float() if key.startswith("dino") else {name: value.float() for name, value in entry.items()}
            torch.save(plain, root / f"{key}-{number}.pt")
    return caches


def make_points(side: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Keypoints of a pair, all of which both images show; each two are the two sides of one another."""
    ids = torch.arange(POINTS).where(torch.arange(POINTS) < SHOWN, -1)
    item: dict[str, Tensor] = {"kps_mask": ids >= 0, "seen_known": torch.tensor(True)}
    for name in ("src", "trg"):
        kps = torch.rand(POINTS, 2, generator=generator) * (side - 1)
        partner = torch.where(ids >= 0, ids ^ 1, -1)
        item |= {f"{name}_kps": kps, f"{name}_seen": kps, f"{name}_seen_ids": ids, f"{name}_seen_partner": partner}
    box = torch.tensor(side / 2)
    return item | {"pck_threshold": box, "src_threshold": box, "kps_ids": ids, "kps_partner": ids}


def compute_plainly(method: GeoAware, batch: Mapping, number: int) -> Tensor:
    """The loss of one pair: every row of every correlation, the keypoints' taken afterwards."""
    head, variants, width = method.head, method.variants, method.image_size[1]

    def describe(name: str, mirrored: bool) -> Tensor:
        maps = F.dropout(method.maps(batch, name, mirrored, None), method.dropout)
        return F.normalize(head(maps).flatten(2), dim=1)  # (1, C, h w)

    names = (("src", False), ("trg", False), ("src", True), ("trg", True))
    src, trg, src_mirrored, trg_mirrored = (describe(*name) for name in names)
    seen = batch["kps_mask"][0]
    pair = [batch[f"{name}_kps"][0][seen] for name in ("src", "trg")]
    alone = match_mirrored(batch, "src", width)
    terms = [
        (1.0, src, trg, *pair, batch["pck_threshold"]),
        (variants.double, src_mirrored, trg_mirrored, *(mirror(kps, width) for kps in pair), batch["pck_threshold"]),
        (variants.alone, src_mirrored, src, *(kps[0][alone.mask[0]] for kps in (alone.src, alone.trg)), alone.extent),
    ]
    total = compute_sparse(src, trg, *(find_rows(kps) for kps in pair), head.logit_scale.exp())
    for weight, one, other, start, end, box in terms:
        end = end + variants.noise * box / 2 * torch.randn_like(end)
        total = total + weight * compute_dense(one, other, start, end)
    return (total / sum(weight for weight, *_ in terms))[None]


def find_rows(kps: Tensor) -> Tensor:
    """Numbers of the cells that keypoints (N, 2) lie in; the grid is as wide as it is high."""
    return (kps / PATCH).floor().long()


def compute_sparse(src: Tensor, trg: Tensor, start: Tensor, end: Tensor, tau: Tensor) -> Tensor:
    width = int(src.shape[-1] ** 0.5)
    d1, d2 = (feat[0, :, cell[:, 1] * width + cell[:, 0]] for feat, cell in ((src, start), (trg, end)))
    logits, truth = tau * d1.T @ d2, torch.arange(len(start), device=src.device)
    return 0.5 * (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth))


def compute_dense(src: Tensor, trg: Tensor, start: Tensor, end: Tensor) -> Tensor:
    width = int(src.shape[-1] ** 0.5)
    p = torch.softmax(src[0].T @ trg[0] / BETA, dim=1)  # all rows
    y, x = torch.meshgrid(*[torch.arange(width, device=src.device).float()] * 2, indexing="ij")
    cells = torch.stack((x.flatten(), y.flatten()), dim=1)
    flow = p @ cells - cells
    cell = find_rows(start).clamp(max=width - 1)
    return (flow[cell[:, 1] * width + cell[:, 0]] - (end - start) / PATCH).norm(dim=1).mean()
