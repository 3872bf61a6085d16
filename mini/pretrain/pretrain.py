"""Pretrain the networks of the mini world: `python -m mini.pretrain.pretrain --help`."""

import argparse
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from diffusers import AutoencoderKL
from transformers import CLIPTokenizer

from mini.pretrain.captions import CaptionSampler, LabelSpace
from mini.pretrain.card import write_card
from mini.pretrain.diffusion import train_diffusion
from mini.pretrain.dino import train_dino
from mini.pretrain.loop import Schedule, first_process_first
from mini.pretrain.proxy import colour_baseline
from mini.pretrain.scenes import SceneStore, build_held_out_store, build_training_store
from mini.pretrain.tokenizer import build_tokenizer
from mini.pretrain.vae import train_vae
from mini.render import CATEGORIES

SCHEDULES = {
    "vae": Schedule(samples=25_000, minutes=None, batch=8, lr=1.5e-3, warmup=800, report_minutes=1.0),
    "dino": Schedule(samples=50_000, minutes=None, batch=32, lr=1e-3),
    "diffusion": Schedule(samples=156_000, minutes=None, batch=24, lr=1e-3),
}
STAGES = (*SCHEDULES, "card")
SHARE = {"vae": 0.1, "dino": 0.3, "diffusion": 0.6}  # of --minutes
HELD_OUT_PER_CATEGORY = 6
HELD_OUT_DINO = 20
VAE_SCENES = 2000  # it sees crops, and needs no more
CAPTIONS = 20_000  # drawn to learn the vocabulary


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=STAGES, help="what to make")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=float, help="training time of the chosen stages together")
    budget.add_argument("--samples", type=int, help="diffusion samples; the other stages scale with them")
    parser.add_argument("--scenes", type=int, default=24_000, help="training scenes to render")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("asset/mini/work"), help="scenes, checkpoints, logs")
    parser.add_argument("--out", type=Path, default=Path("asset/mini"), help="the finished networks")
    parser.add_argument("--note", default="", help="what the model card should say about the run")
    return parser.parse_args(argv)


def build_schedule(stage: str, args: argparse.Namespace) -> Schedule:
    """Return the schedule of a stage under the budget asked for."""
    schedule = replace(SCHEDULES[stage], seed=args.seed)
    if args.minutes is not None:
        minutes = args.minutes * SHARE[stage] / sum(SHARE.get(name, 0.0) for name in args.stage)
        return replace(schedule, samples=None, minutes=minutes)
    if args.samples is not None:
        return replace(schedule, samples=round(schedule.samples * args.samples / SCHEDULES["diffusion"].samples))
    return schedule


def load_tokenizer(store: SceneStore, folder: Path, seed: int) -> CLIPTokenizer:
    """Read the tokenizer, or learn its vocabulary from drawn captions."""
    if (folder / "tokenizer_config.json").exists():
        return CLIPTokenizer.from_pretrained(folder)
    sampler, rng = CaptionSampler(CATEGORIES), np.random.default_rng([seed, 77])
    texts = (sampler.draw(rng, store.objects[i % len(store)]).text for i in range(CAPTIONS))
    return build_tokenizer(texts, folder)


def describe(device: torch.device) -> str:
    """Return the device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"a CPU with {os.cpu_count()} cores"


def main(argv: list[str] | None = None) -> None:
    """Render, train what was asked for, and save it."""
    args = parse_arguments(argv)
    if "WORLD_SIZE" in os.environ:  # started by torchrun
        dist.init_process_group("gloo")
    name = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    device = torch.device(name)
    torch.manual_seed(args.seed)
    with first_process_first():
        store = build_training_store(args.work / "scenes", args.scenes)
    if "vae" in args.stage:
        held_out = build_held_out_store(HELD_OUT_PER_CATEGORY)
        train_vae(
            store.first(VAE_SCENES),
            held_out,
            build_schedule("vae", args),
            args.work,
            args.work / "vae",
            device,
        )
    if "dino" in args.stage:
        held_out = build_held_out_store(HELD_OUT_DINO)
        space, schedule = LabelSpace(CATEGORIES), build_schedule("dino", args)
        train_dino(store, held_out, space, schedule, args.work, args.out / "dinov2", device)
    if "diffusion" in args.stage:
        held_out = build_held_out_store(HELD_OUT_PER_CATEGORY)
        vae = AutoencoderKL.from_pretrained(args.work / "vae").to(device).eval()
        with first_process_first():
            tokenizer = load_tokenizer(store, args.work / "tokenizer", args.seed)
        schedule, out = build_schedule("diffusion", args), args.out / "stable-diffusion"
        train_diffusion(store, held_out, CATEGORIES, tokenizer, vae, schedule, args.work, out, device)
    if "card" in args.stage and (not dist.is_initialized() or dist.get_rank() == 0):
        baseline = colour_baseline(build_held_out_store(HELD_OUT_PER_CATEGORY))
        write_card(args.work, args.out, args.scenes, baseline, describe(device), args.note)


if __name__ == "__main__":
    main()
