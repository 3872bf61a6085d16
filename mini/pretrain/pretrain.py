"""Pretrain the networks of the mini world: `sh mini/pretrain.sh --help`."""

import argparse
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTokenizer

from mini.pretrain.captions import CaptionSampler, LabelSpace
from mini.pretrain.card import write_card
from mini.pretrain.diffusion import train_diffusion
from mini.pretrain.dino import train_dino
from mini.pretrain.loop import Schedule
from mini.pretrain.process import first_process_first, join_first, start_second
from mini.pretrain.proxy import colour_baseline
from mini.pretrain.scenes import (
    SceneStore,
    build_held_out_pairs,
    build_held_out_store,
    build_training_store,
    load_training_store,
)
from mini.pretrain.tokenizer import build_tokenizer
from mini.pretrain.vae import train_vae
from mini.pretrain.words import train_words
from mini.render.categories import KNOWN

SCHEDULES = {
    "vae": Schedule(samples=24_000, batch=8, lr=1.5e-3, warmup=800, reports=8),
    "dino": Schedule(samples=480_000, batch=16, lr=1e-3, reports=10),
    "diffusion": Schedule(samples=140_000, batch=24, lr=1e-3, reports=20),
    "words": Schedule(samples=20_000, batch=24, lr=1e-3, reports=5),
}
MINUTES = {"rendering": 2, "vae": 4, "dino": 25, "diffusion": 72, "words": 11}  # on two cores with nothing else to do
GOES_ON_FROM = {"diffusion": ("vae", "vae"), "words": ("diffusion", "networks/stable-diffusion")}  # stage, its result
SCENES = 24_000
HELD_OUT_PER_CATEGORY = 6
HELD_OUT_DINO = 20
HELD_OUT_PAIRS = 150
VAE_SCENES = 2000  # it sees crops, and needs no more
CAPTIONS = 30_000  # drawn to learn the vocabulary
FOLDERS = ("stable-diffusion", "dinov2", "stable-diffusion-words")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="pretrain.sh", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--stage", nargs="+", choices=tuple(SCHEDULES), default=tuple(SCHEDULES), help="what to train")
    parser.add_argument("--share", type=float, default=1.0, help="of the scenes and samples, for a trial")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("asset/mini/work"), help="scenes, checkpoints, networks")
    parser.add_argument("--out", type=Path, default=Path("asset/mini"), help="the finished networks and their card")
    return parser.parse_args(argv)


def check_stages(args: argparse.Namespace) -> None:
    """Leave with a message where a stage lacks what it goes on from."""
    for stage, (earlier, result) in GOES_ON_FROM.items():
        if stage in args.stage and earlier not in args.stage and not (args.work / result).exists():
            sys.exit(
                f"--stage {stage} goes on from {args.work / result}, which is not there: run --stage {earlier} first"
            )


def build_schedule(stage: str, args: argparse.Namespace) -> Schedule:
    """Return the schedule of a stage."""
    schedule = SCHEDULES[stage]
    samples, reports = (max(1, round(value * args.share)) for value in (schedule.samples, schedule.reports))
    return replace(schedule, samples=samples, reports=min(reports, schedule.reports), seed=args.seed)


def load_tokenizer(store: SceneStore, folder: Path, seed: int) -> CLIPTokenizer:
    """Read the tokenizer, or learn its vocabulary from drawn captions; every process runs this."""
    with first_process_first():
        if not folder.exists():
            sampler, rng = CaptionSampler(KNOWN), np.random.default_rng([seed, 77])
            rows = (i % len(store) for i in range(CAPTIONS))
            texts = (sampler.draw(rng, store.objects[row], store.relations[row]).text for row in rows)
            aside = folder.with_name(f"{folder.name}.new")
            build_tokenizer(texts, aside)
            os.replace(aside, folder)
    return CLIPTokenizer.from_pretrained(folder)


def train(args: argparse.Namespace) -> None:
    """Train the chosen stages; every process runs this."""
    device, store = torch.device("cpu"), load_training_store(args.work / "scenes")
    networks = args.work / "networks"
    if "vae" in args.stage:
        torch.manual_seed(args.seed)
        held_out, schedule = build_held_out_store(HELD_OUT_PER_CATEGORY), build_schedule("vae", args)
        train_vae(store.first(VAE_SCENES), held_out, schedule, args.work, args.work / "vae", device)
    if "dino" in args.stage:
        torch.manual_seed(args.seed)
        held_out, schedule = build_held_out_store(HELD_OUT_DINO), build_schedule("dino", args)
        train_dino(store, held_out, LabelSpace(KNOWN), schedule, args.work, networks / "dinov2", device)
    if "diffusion" in args.stage:
        held_out, schedule = build_held_out_store(HELD_OUT_PER_CATEGORY), build_schedule("diffusion", args)
        vae = AutoencoderKL.from_pretrained(args.work / "vae").eval()
        tokenizer = load_tokenizer(store, args.work / "tokenizer", args.seed)
        torch.manual_seed(args.seed)
        out = networks / "stable-diffusion"
        train_diffusion(store, held_out, KNOWN, tokenizer, vae, schedule, args.work, out, device)
    if "words" in args.stage:
        torch.manual_seed(args.seed)
        held_out, schedule = build_held_out_pairs(HELD_OUT_PAIRS), build_schedule("words", args)
        tokenizer = load_tokenizer(store, args.work / "tokenizer", args.seed)
        trained, out = networks / "stable-diffusion", networks / "stable-diffusion-words"
        train_words(store, held_out, tokenizer, trained, schedule, args.work, out, device)


def publish(args: argparse.Namespace) -> None:
    """Put the finished networks and their card in their place."""
    baseline = colour_baseline(build_held_out_store(HELD_OUT_PER_CATEGORY))
    for name in FOLDERS:
        aside, target = args.out / f".{name}.new", args.out / name
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(args.work / "networks" / name, aside)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(aside, target)
    write_card(args.work, args.out, round(SCENES * args.share), baseline)


def main(argv: list[str] | None = None) -> None:
    """Render, train what was asked for, and put it in its place when all of it is there."""
    args = parse_arguments(argv)
    check_stages(args)
    torch.set_num_threads(1)
    if join_first():
        return train(args)
    stages = ", ".join(f"{name} {minutes * args.share:.0f} min" for name, minutes in MINUTES.items())
    print(f"pretraining on two cores: {stages}; interrupted, the same command goes on", flush=True)
    build_training_store(args.work / "scenes", round(SCENES * args.share))
    second = start_second()
    train(args)
    second.wait()
    if all((args.work / "networks" / name).exists() for name in FOLDERS):
        publish(args)


if __name__ == "__main__":
    main()
