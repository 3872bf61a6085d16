"""accuracy over the diffusion timestep, from the CSV files that script/sweep_timestep.py writes"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("csv", nargs="+", help="files of script/sweep_timestep.py; a curve per prompt")
    parser.add_argument("--y_label", default="PCK (%)", help="default: %(default)s")


def build(args: argparse.Namespace, columns: dict):
    from script.sweep_timestep import read_curves
    from utils.plot import plot_curves

    curves: dict[str, dict[int, float]] = {}
    for path in args.csv:
        for prompt, points in read_curves(Path(path)).items():
            curves.setdefault(prompt, {}).update(points)
    ordered = {prompt: dict(sorted(points.items())) for prompt, points in curves.items()}
    return plot_curves(ordered, "timestep", args.y_label)
