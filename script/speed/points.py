"""Points per second of LDM_correspondences, against script.speed.plain_points."""

from __future__ import annotations

import argparse

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from engine.build import build_accelerator, build_method
from engine.precompute import build_caches
from engine.transfer import build_loader, move_batch
from model.backbone.attention import read_layers
from model.backbone.facts import find_configs
from model.method.ldm_correspondence import LDMCorrespondence, Point
from model.method.point_embedding import Rows
from model.source import find_stable_diffusion
from script.speed import flops
from script.speed.plain_points import PlainPoints
from script.speed.sides import Comparison, Side, render_pairs
from utils.noise import derive_seeds, draw_noise, identifier_seed

LOSSES, MAPS = 1e-4, 1e-3  # relative differences that may be
POINTS = 4  # of a pair, at most


def compare_points(cfg, args: argparse.Namespace) -> Comparison:
    """A source with several targets, as the pairs of a data set are: SPair-71k's test split has 26 for each source.

    Here the points are found once, plainly for each pair.
    """
    accelerator, pairs = build_accelerator(cfg), render_pairs(cfg, args.pairs)
    device = accelerator.device
    method: LDMCorrespondence = build_method(cfg, device, None)
    build_caches(cfg, (pairs,), method, accelerator)
    images, points, targets = _list_points(cfg, pairs, device, args.pairs)
    finder = method.finder
    plain = PlainPoints(
        *(finder.unet, finder.latents.vae, finder.scheduler, finder.latents.scaling_factor),
        *(finder.rule.side, finder.rule.margin),
        *(finder.layers, finder.heads, finder.token, finder.uniform_noise),
    )

    def run() -> Tensor:
        finder.latents._found.clear()  # no crop is known yet
        return method.read(images, targets, points, method.find(images, points))

    def run_plainly() -> None:
        for point, target in zip(points, targets, strict=True):
            for number in range(method.rounds):
                seed, start = _start(method, point, number)
                embedding, _ = plain.find(images[point.key], torch.tensor(point.xy), start, seed, method.descent)
                plain.read(images[target], embedding, seed, method.reading)

    work = count_point(cfg)
    shared = {"ours": len(set(targets)), "plain": 1}  # targets of a point that is found once
    tflop = {
        name: cfg.LDM.ROUNDS
        * (cfg.LDM.STEPS * (step + vae) / shared[name] + cfg.LDM.CROPS * (reading + vae))
        / flops.TERA
        for name, (step, reading, vae) in work.items()
    }
    ours = Side(run, len(points), [method.networks], tflop["ours"])
    reference = Side(run_plainly, len(points), [method.networks], tflop["plain"])
    return Comparison("points", ours, reference, _compare(method, plain, images, points, targets))


def count_point(cfg) -> dict[str, tuple[int, int, int]]:
    """Operations of a step of finding, of a pass of reading, and of the VAE in each; ours has kept all crops."""
    configs = find_configs(**find_stable_diffusion(cfg))
    with torch.device(flops.META):
        unet = UNet2DConditionModel.from_config(configs["unet"]).requires_grad_(False)
        vae = AutoencoderKL.from_config(configs["vae"]).requires_grad_(False)
    height, width = cfg.DATASET.IMAGE_SIZE
    stride = 2 ** (len(configs["vae"]["block_out_channels"]) - 1)
    latent = torch.empty(1, unet.config.in_channels, height // stride, width // stride, device=flops.META)
    embedding = torch.empty(1, cfg.LDM.TOKENS, unet.config.cross_attention_dim, device=flops.META, requires_grad=True)
    time = torch.zeros(1, device=flops.META)

    def run(stop: bool) -> Tensor:
        with read_layers(unet, cfg.LDM.LAYERS, latent.shape[-2:], heads=cfg.LDM.HEADS or None, stop=stop) as found:
            unet(latent, time, embedding)
        return torch.cat([found[layer].maps()[..., cfg.LDM.TOKEN].flatten() for layer in cfg.LDM.LAYERS])

    forward, backward = flops.count_both(lambda: run(stop=True))
    whole = flops.count(lambda: run(stop=False))
    encode = flops.count(lambda: vae.encode(torch.empty(1, 3, height, width, device=flops.META)))
    return {"ours": (forward + backward, forward, 0), "plain": (whole + backward, whole, encode)}


def _list_points(cfg, pairs, device: torch.device, n_targets: int) -> tuple[dict[int, Tensor], list[Point], list[int]]:
    """Images by key; the points of a source, once for each of its targets; and the key of each one's target."""
    images, batches = {}, [move_batch(batch, device) for batch in build_loader(pairs)]
    for batch in batches:
        for side in ("src", "trg"):
            images[identifier_seed(cfg.SEED, batch[f"{side}_identifier"][0])] = batch[f"{side}_image"][0]
    source = identifier_seed(cfg.SEED, batches[0]["src_identifier"][0])
    real = batches[0]["src_kps"][batches[0]["kps_mask"]][:POINTS].tolist()
    chosen = [key for key in images if key != source][:n_targets]
    return images, [Point(source, tuple(xy)) for _ in chosen for xy in real], [key for key in chosen for _ in real]


def _start(method: LDMCorrespondence, point: Point, number: int) -> tuple[int, Tensor]:
    """Seed and first embedding of a round, as the method has them."""
    seed = identifier_seed(point.key, f"{point.xy} {number}")
    shape, device = (method.tokens, method.finder.width), method.finder.device
    return seed, draw_noise(derive_seeds(torch.tensor([seed]), 0), shape, device)[0]


def _compare(method, plain: PlainPoints, images, points, targets) -> dict[str, tuple[float, float]]:
    """Losses and maps of the first point's first round on both sides."""
    point, target, finder = points[0], targets[0], method.finder
    seed, start = _start(method, point, 0)
    rows = Rows((point.key,), torch.tensor([point.xy]), torch.tensor([seed]))
    with torch.no_grad():
        one = finder.loss(images, rows, start[None], method.descent, 0)[0]
        other = plain.loss(images[point.key], torch.tensor(point.xy), start, seed, method.descent, 0)
    rows = Rows((target,), torch.zeros(1, 2), torch.tensor([seed]))
    ((_, maps),) = method.reader.read(images, rows, start[None], method.reading)
    expected = plain.read(images[target], start, seed, method.reading)
    return {
        "loss, relative": (float((one - other).abs() / other), LOSSES),
        "maps, relative": (float((maps[0] - expected).abs().max() / expected.abs().max()), MAPS),
    }
