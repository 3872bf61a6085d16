"""Rankings by DSD against the plain way of its release.

Plain: for every candidate and timestep anew the VAE, the text model, and a row of the UNet under the empty text beside
that under its own.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from dataset.comvg import ComVG
from dataset.item_dataset import ItemDataset
from dataset.manifest import Manifest
from engine.build import build_accelerator, build_method, build_pairs
from engine.precompute import build_caches
from engine.ranking import share_batches
from engine.transfer import build_loader, move_batch
from mini.render.comvg import CHANGES, write_comvg
from model.backbone.diffusion import draw_latents, encode_posterior
from model.backbone.load import load_stable_diffusion
from model.source import find_stable_diffusion
from script.speed import flops
from script.speed.sides import Comparison, Side, make_work
from utils.noise import derive_seeds, draw_noise, identifier_seed
from utils.store import write_text

TEXTS = 10  # of an item
SCORES = 1e-3  # relative difference that may be: the caches keep half precision


def write_items(root: Path, count: int) -> None:
    """ComVG's layout, and a manifest of its first pictures, each with its sentence and nine others."""
    write_comvg(root, {"test": -(-count // len(CHANGES))})
    items = list(ComVG(root / ComVG.FOLDER, "test"))
    texts = [item.texts[0] for item in items]
    lines = [
        {"id": item.item_id, "texts": (texts[n:] + texts[:n])[:TEXTS], "images": [item.images[0].path], "label": 0}
        for n, item in enumerate(items)
    ]
    write_text(root / Manifest.FOLDER / "test.jsonl", "\n".join(map(json.dumps, lines)) + "\n")


def compare_rankings(cfg, args: argparse.Namespace) -> Comparison:
    """Items of ten sentences and a picture (DATASET.NAME manifest), or of a sentence and two pictures (comvg).

    Every picture is new, which is the worst case for sharing.
    """
    write_items(Path(cfg.DATASET.ROOT), max(args.pairs, TEXTS))
    accelerator, data = build_accelerator(cfg), build_pairs(cfg, "test")
    data = data.select(range(min(args.pairs, len(data))))
    method = build_method(cfg, accelerator.device, None)
    build_caches(cfg, (data,), method, accelerator)
    images = ItemDataset(data.benchmark, data.frame, with_images=True)
    vae = load_stable_diffusion(
        parts=("vae",), device=accelerator.device, seed=cfg.SEED, **find_stable_diffusion(cfg)
    ).vae

    def find_seeds(batch: dict) -> Tensor:
        return torch.tensor([[identifier_seed(cfg.SEED, name) for name in row] for row in batch["identifiers"]])

    @torch.no_grad()
    def rank() -> Tensor:
        fresh = method.at(0, 1)  # knows no image yet
        batches = build_loader(data, batches=share_batches(len(data), 1, cfg.EVAL.BATCH_SIZE, accelerator))
        found = [fresh.rank(move_batch(batch, accelerator.device), find_seeds(batch))["score"] for batch in batches]
        return torch.cat(found).cpu()

    @torch.no_grad()
    def score_plainly(image: Tensor, text: str, seed: Tensor) -> float:
        total = 0.0
        for k, t in enumerate(method.timesteps):
            posterior = encode_posterior(vae, image[None])
            shape = (posterior.shape[1] // 2, *posterior.shape[2:])
            z = draw_latents(posterior, method.scaling_factor, draw_noise(derive_seeds(seed, 0), shape, vae.device))
            noise = draw_noise(derive_seeds(torch.tensor([method.seed]), k), shape, vae.device)
            method.score.forget()
            total += float(method.score.score(z, [text], torch.tensor([t], device=z.device), noise).total)
        return total / len(method.timesteps)

    def rank_plainly() -> Tensor:
        found = []
        for batch in build_loader(images):
            seeds = find_seeds(batch)
            candidates = [(i, text) for text in batch["texts"][0] for i in range(len(batch["identifiers"][0]))]
            found.append([score_plainly(batch["img"][0, i], text, seeds[:, i]) for i, text in candidates])
        return torch.tensor(found)

    one, other = rank(), rank_plainly()
    differences = {
        "scores, relative": (float(((one - other) / other).abs().max()), SCORES),
        "items ranked otherwise": (float((one.argmax(dim=1) != other.argmax(dim=1)).sum()), 0.0),
    }
    parts = {name: forward / flops.TERA for name, (forward, _) in flops.count_parts(make_work(cfg)).items()}
    unet, steps, candidates = parts["whole UNet"], len(method.timesteps), one.shape[1]
    rows = {(ref.identifier, text) for item in data.benchmark for ref in item.images for text in ("", *item.texts)}
    ours = steps * unet * len(rows) / len(data)
    plain = candidates * steps * (2 * unet + parts["VAE encoder"] + 2 * parts["text transformer"])
    return Comparison(
        "items", Side(rank, len(data), [method], ours), Side(rank_plainly, len(data), [method, vae], plain), differences
    )
