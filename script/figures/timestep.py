"""accuracy over the diffusion timestep, from the CSV files that script/sweep_timestep.py writes"""

import argparse
import csv
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("csv", nargs="+", help="files of script/sweep_timestep.py; a curve per prompt")
    parser.add_argument("--y_label", default="PCK (%)", help="default: %(default)s")


def build(args: argparse.Namespace, columns: dict):
    from utils.plot import plot_curves

    curves: dict[str, dict[int, float]] = {}
    for path in args.csv:
        for prompt, points in read_curves(path).items():
            curves.setdefault(prompt, {}).update(points)
    return plot_curves(curves, "timestep", args.y_label)


def read_curves(path: str) -> dict[str, dict[int, float]]:
    """prompt -> {timestep: PCK in percent} of a sweep's CSV, in the order of the timesteps."""
    from config import ConfigError

    curves: dict[str, dict[int, float]] = {}
    try:
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                curves.setdefault(row["prompt"], {})[int(row["timestep"])] = float(row["pck"])
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise ConfigError(
            f"{path}: expected the columns prompt,timestep,pck of script/sweep_timestep.py ({type(error).__name__})"
        ) from error
    if not curves:
        raise ConfigError(f"{Path(path)} has no rows")
    return {prompt: dict(sorted(points.items())) for prompt, points in curves.items()}
