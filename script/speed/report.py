"""Results: one dictionary, printed, as table rows, or as JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping

import torch

from script.speed.measure import GIB, Side, describe_machine, quartiles

MARKDOWN_HEAD = """\
| command | device | ours | reference | ratio | TFLOP ours / reference | share of matmul peak | peak memory |
|---|---|---|---|---|---|---|---|"""

COMMON = ("mode", "network", "unit", "command", "settings", "sides", "ratio", "check", "matmul_peak_tflops", "machine")


def check_close(differences: Mapping[str, float], tolerances: Mapping[str, float]) -> dict:
    """Whether every difference between the sides is within its tolerance."""
    passed = all(differences[name] <= tolerances[name] for name in differences)
    return {"passed": passed, "differences": dict(differences), "tolerances": dict(tolerances)}


def make_result(
    args: argparse.Namespace,
    cfg,  # None for modes without a network
    unit: str,
    sides: Mapping[str, Side],
    checked: dict,
    device: torch.device,
    flops: Mapping[str, int] | None = None,
    peak_tflops: float | None = None,
    **extra: object,
) -> dict:
    """Everything that is known of a run, JSON values only."""
    result: dict = {"mode": args.mode, "network": args.network, "unit": unit}
    if cfg is not None:
        result["settings"] = {
            "image_size": list(cfg.DATASET.IMAGE_SIZE),
            "batch_size": cfg.TRAIN.BATCH_SIZE if args.mode in ("train", "loader") else cfg.EVAL.BATCH_SIZE,
            "precision": cfg.PRECISION,
            "workers": cfg.DATASET.NUM_WORKERS,
            "opts": list(args.opts),
        }
    result["sides"] = {name: _describe_side(name, side, flops, peak_tflops) for name, side in sides.items()}
    pairs = zip(sides["ours"].rates, sides["reference"].rates, strict=True)
    result["ratio"] = quartiles([ours / plain for ours, plain in pairs])
    return result | {
        "check": checked,
        "matmul_peak_tflops": peak_tflops,
        "machine": {**describe_machine(device), "load_average": args.load_average},
        **extra,
    }


def _describe_side(name: str, side: Side, flops: Mapping[str, int] | None, peak_tflops: float | None) -> dict:
    rate = quartiles(side.rates)
    described = {"per_s": {**rate, "all": side.rates}, "peak_memory_gib": side.peak_bytes / GIB}
    if flops is not None:
        tflop = flops[name] / 1e12
        described |= {"tflop_per_unit": tflop, "tflops": tflop * rate["median"]}
        described["share_of_peak"] = described["tflops"] / peak_tflops
    return described


def format_result(result: dict) -> str:
    """A few lines for people."""
    machine, unit = result["machine"], result["unit"]
    lines = [f"{result['mode']}, {result['network']}, {machine['device']}, {machine['threads']} thread(s)"]
    for name, side in result["sides"].items():
        lines.append(f"  {name:<10} {_spread(side['per_s'])} {unit}/s, peak memory {side['peak_memory_gib']:.3f} GiB")
        if "tflop_per_unit" in side:
            lines.append(
                f"  {'':<10} {side['tflop_per_unit']:.4g} TFLOP each, {side['tflops']:.4g} TFLOP/s, "
                f"{side['share_of_peak']:.1%} of the {result['matmul_peak_tflops']:.4g} that matmuls reach"
            )
    lines.append(f"  ratio      {_spread(result['ratio'])}")
    check = result["check"]
    lines.append(f"  equal numbers: {'yes' if check['passed'] else 'NO'}")
    for name, difference in check["differences"].items():
        lines.append(f"    {name}: {difference:.3g} (tolerance {check['tolerances'][name]:g})")
    lines += [f"  {name}: {_short(value)}" for name, value in result.items() if name not in COMMON]
    return "\n".join(lines)


def format_markdown(result: dict) -> str:
    """Rows of docs/performance.md's table (MARKDOWN_HEAD): of the command, and of a training's data loader alone."""
    ours, plain = result["sides"]["ours"], result["sides"]["reference"]
    tflop = share = "-"
    if "tflop_per_unit" in ours:
        tflop = f"{ours['tflop_per_unit']:.3g} / {plain['tflop_per_unit']:.3g}"
        share = f"{ours['share_of_peak']:.0%} / {plain['share_of_peak']:.0%}"
    cells = [
        f"`{result['command']}`",
        result["machine"]["device"],
        *(f"{_spread(side['per_s'])} {result['unit']}/s" for side in (ours, plain)),
        f"**{_spread(result['ratio'])}**",
        tflop,
        share,
        f"{ours['peak_memory_gib']:.2f} / {plain['peak_memory_gib']:.2f} GiB{_predicted(result)}",
    ]
    rows = [f"| {' | '.join(cells)} |"]
    if loader := result.get("loader_pairs_per_s"):
        ratio, share = loader["ours"] / loader["reference"], loader["ours_over_training"]
        speeds = f"{loader['ours']:.4g} pairs/s ({share:.3g} x the training) | {loader['reference']:.4g} pairs/s"
        rows.append(f"| its data loader alone | {cells[1]} | {speeds} | {ratio:.3g} | - | - | - |")
    return "\n".join(rows)


def format_json(result: dict) -> str:
    return json.dumps(result, indent=2, allow_nan=False) + "\n"


def _predicted(result: dict) -> str:
    """What a device's peak was predicted to be; a CPU's is the whole process's, which is something else."""
    known = "predicted_peak_gib" in result and not result["machine"]["device"].startswith("cpu")
    return f" (ours predicted: {result['predicted_peak_gib']:.2f})" if known else ""


def _spread(values: Mapping[str, float]) -> str:
    return f"{values['median']:.4g} ({values['q1']:.4g} to {values['q3']:.4g})"


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_short(item)}" for key, item in value.items())
    return str(value)
