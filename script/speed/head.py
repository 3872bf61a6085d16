"""Training of GeoAware-SC's post-processor from cached maps against the plain way of its release.

Plain: single-precision files without a digest, one image after the other through the network, and the soft-arg-max of
every source cell, of which the keypoints' rows are taken afterwards.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from config import ConfigError
from dataset.pair_dataset import collate
from engine.transfer import move_batch
from loss.pose_variants import match_mirrored, mirror
from loss.soft_argmax_error import SoftArgmaxError
from model.backbone.device import resolve_device
from model.head import AggregationNetwork
from model.method.geoaware import READS, GeoAware, join_maps
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
    size, root = (side * PATCH, side * PATCH), Path(cfg.DATASET.ROOT)
    generator = torch.Generator().manual_seed(cfg.SEED)
    caches = write_maps(root, side, 2 * args.pairs, generator)
    batches = [make_points(size[0], generator) for _ in range(args.pairs)]
    with seeded(cfg.SEED):
        head = AggregationNetwork([channels for channels, _ in DIMS.values()]).to(device)
    method = GeoAware(size, list(DIMS)[:3], head)
    method.learn_as(cfg.GEOAWARE)
    method.objective = SoftArgmaxError(BETA)
    plain_head = copy.deepcopy(head)
    optimizers = [torch.optim.AdamW(network.parameters(), lr=1e-6, weight_decay=1e-3) for network in (head, plain_head)]

    def read(number: int) -> dict:
        maps = {
            f"{name}_{key}": cache.get(str(2 * number + place))
            for place, name in enumerate(("src", "trg"))
            for key, cache in caches.items()
        }
        return move_batch(collate([batches[number] | maps]), device)

    def read_plainly(number: int) -> dict:
        maps = {
            f"{name}_{key}": torch.load(root / f"{key}-{2 * number + place}.pt")
            for place, name in enumerate(("src", "trg"))
            for key in caches
        }
        return move_batch(collate([batches[number] | maps]), device)

    def step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        loss.sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    def learn() -> None:
        for number in range(args.pairs):
            step(optimizers[0], method.loss(read(number), torch.tensor([[2 * number, 2 * number + 1]])))

    def learn_plainly() -> None:
        for number in range(args.pairs):
            step(
                optimizers[1], compute_plainly(plain_head, read_plainly(number), method.variants, method.dropout, size)
            )

    exact = copy.copy(method)
    exact.dropout, exact.variants = 0.0, copy.copy(method.variants)
    object.__setattr__(exact.variants, "noise", 0.0)
    losses = (
        exact.loss(read(0), torch.tensor([[0, 1]])),
        compute_plainly(plain_head, read(0), exact.variants, 0.0, size),
    )
    gradients = []
    for network, loss in zip((head, plain_head), losses, strict=True):
        loss.sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
        network.zero_grad()
    differences = {
        "loss, relative": (relative(*losses), 1e-4),
        "gradient, relative": (relative(*gradients), 1e-2),
    }
    return Comparison(
        "pairs", Side(learn, args.pairs, [head]), Side(learn_plainly, args.pairs, [plain_head]), differences
    )


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


def compute_plainly(head: nn.Module, batch: Mapping, variants, dropout: float, size: tuple[int, int]) -> Tensor:
    """The loss of one pair: every row of every correlation, the keypoints' taken afterwards."""
    taps = list(DIMS)[:3]

    def describe(name: str, mirrored: bool) -> Tensor:
        layers, dino = (batch[f"{name}_{key}{MIRRORED * mirrored}"] for key in READS)
        maps = F.dropout(join_maps([layers[tap] for tap in taps], dino), dropout)
        return F.normalize(head(maps).flatten(2), dim=1)  # (1, C, h w)

    names = (("src", False), ("trg", False), ("src", True), ("trg", True))
    src, trg, src_mirrored, trg_mirrored = (describe(*name) for name in names)
    seen = batch["kps_mask"][0]
    pair = [batch[f"{name}_kps"][0][seen] for name in ("src", "trg")]
    alone = match_mirrored(batch, "src", size[1])
    terms = [
        (1.0, src, trg, *pair, batch["pck_threshold"]),
        (variants.double, src_mirrored, trg_mirrored, *(mirror(kps, size[1]) for kps in pair), batch["pck_threshold"]),
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
