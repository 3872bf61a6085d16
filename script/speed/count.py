"""`benchmark.py train --count-only`: arithmetic of a training step, the gradient's size, and what they promise."""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch

from script.speed.flops import (
    TERA,
    Work,
    build_cpm,
    count_parts,
    count_prompt_keys,
    count_reference_test_pair,
    count_reference_training_pair,
    count_test_pair,
    count_training_pair,
)
from script.speed.inputs import make_config, make_work
from script.speed.measure import GIB
from script.speed.memory import predict_training_peak
from script.speed.scaling import gradient_bytes, project

PER = {"text transformer": "prompt", "CPM": "pair", "loss": "pair"}  # the rest is per image
PAIRS_PER_PROCESS = 3
PAIRS_PER_S = 80.0  # the target for one H200, until a measured number takes its place


def run_count(args: argparse.Namespace) -> str:
    """Markdown tables: TFLOP of each part, totals per training pair, and the projected scaling."""
    cfg = make_config(args)
    work = make_work(cfg)
    n_parameters, n_bytes = gradient_bytes(build_cpm(work))
    pairs, rate = args.batch_size or PAIRS_PER_PROCESS, args.pairs_per_s or PAIRS_PER_S
    height, width = work.image_size
    keys = count_prompt_keys(work)
    parts, tested = count_parts(work), replace(work, ensemble=cfg.TEST.ENSEMBLE)
    return "\n".join(
        [
            f"{args.network}, {height} x {width} px, up-block {work.layer}, {work.variant}\n",
            *_format_parts(parts),
            "\n| training pair | TFLOP |\n|---|---|",
            f"| this repository | {_tera(count_training_pair(work))} |",
            f"| reference | {_tera(count_reference_training_pair(work))} |",
            *_format_savings(parts, work.layer),
            f"\n| test pair, {tested.ensemble} noise draws | TFLOP |\n|---|---|",
            f"| this repository | {_tera(count_test_pair(tested))} |",
            f"| reference | {_tera(count_reference_test_pair(tested))} |",
            f"\nKeys and values of the prompt in the UNet's cross-attention: {_tera(keys)} TFLOP per image and draw, "
            f"{keys / parts[f'UNet to up-block {work.layer}'][0]:.2%} of the UNet\n",
            *_format_memory(work),
            f"\n{work.variant}: {n_parameters:,} parameters, {n_bytes:,} bytes of gradient in float32\n",
            f"Projection for {pairs} pairs per process and step at {rate:g} pairs/s per process "
            f"({1e3 * pairs / rate:.1f} ms per step):\n",
            *_format_projection(project(n_bytes, pairs / rate)),
        ]
    )


def _format_parts(parts: dict[str, tuple[int, int]]) -> list[str]:
    rows = ["| part | TFLOP forward | TFLOP backward to the prompt |", "|---|---|---|"]
    for name, (forward, backward) in parts.items():
        rows.append(f"| {name}, per {PER.get(name, 'image')} | {_tera(forward)} | {_tera(backward)} |")
    return rows


def _format_savings(parts: dict[str, tuple[int, int]], layer: int) -> list[str]:
    """What each change takes off a pair of the reference."""
    savings = {
        "VAE posterior from disk": 2 * parts["VAE encoder"][0],
        "UNet ends at the block": 2 * (parts["whole UNet"][0] - parts[f"UNet to up-block {layer}"][0]),
        "one text pass for both images": sum(parts["text transformer"]),
    }
    return [f"| less: {name} | {_tera(flops)} |" for name, flops in savings.items()]


def _format_memory(work: Work) -> list[str]:
    """Predicted peaks of a training step in bf16."""
    rows = ["| pairs per step | peak memory in bf16, predicted | with NETWORK.RECOMPUTE |", "|---|---|---|"]
    for n_pairs in (3, 9):
        sized = replace(work, batch_size=n_pairs)
        peaks = (predict_training_peak(sized, torch.bfloat16, recompute) / GIB for recompute in (False, True))
        rows.append(f"| {n_pairs} | {' | '.join(f'{peak:.1f} GiB' for peak in peaks)} |")
    return rows


def _format_projection(projected: list[dict]) -> list[str]:
    worlds = sorted({row["processes"] for row in projected})
    cells = {(row["link"], row["processes"]): f"{row['efficiency']:.1%}" for row in projected}
    rows = [f"| link | {' | '.join(map(str, worlds))} processes |", "|---" * (len(worlds) + 1) + "|"]
    for link in dict.fromkeys(row["link"] for row in projected):
        rows.append(f"| {link} | {' | '.join(cells[link, world] for world in worlds)} |")
    return rows


def _tera(flops: int) -> str:
    return f"{flops / TERA:.4f}" if flops else "-"
