"""Time this repository against a plain reference that works as SD4Match's release does, on the same inputs.

    python script/benchmark.py train --network mini                 # pairs/s of training steps
    python script/benchmark.py test --network mini                  # pairs/s of a test of a CPM prompt, PCK included
    python script/benchmark.py features --network mini              # images/s under a prompt that all images share
    python script/benchmark.py localise --network sd2-1-random      # pairs/s of four localisers and PCK
    python script/benchmark.py loader --network sd2-1-random        # pairs/s of the data loader alone
    python script/benchmark.py index                                # pairs/s of opening annotations of SPair-71k's size
    python script/benchmark.py cache --network sd2-1-random         # images/s of DINOv2 features from disk
    python script/benchmark.py layers --network mini                # images/s of GeoAware-SC's layers, in windows
    python script/benchmark.py rank --network mini                  # items/s of texts and images scored by DSD
    python script/benchmark.py points --network mini --pairs 8      # points/s of LDM_correspondences
    python script/benchmark.py head --pairs 4                       # pairs/s of steps of GeoAware-SC's post-processor
    python script/benchmark.py count --network sd2-1-random         # arithmetic of a pair; nothing is run

Both sides run in one process, in turn (A B A B ...), after warm-up; medians and quartiles are over rounds. Whether both
give the same numbers is checked first: exit status 1 if not. --network is `mini`, `sd2-1-random`, `sd1-5-random` (their
architectures with random weights, offline), or a diffusers folder. Settings follow as KEY VALUE, such as DEVICE cuda.
"""

import argparse
import importlib
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import ConfigError
from engine.argument import positive
from engine.entry import entry_point

MODES = {  # what compares the two sides of each
    "train": "sides:compare_training",
    "test": "sides:compare_testing",
    "features": "sides:compare_features",
    "localise": "sides:compare_localisers",
    "loader": "sides:compare_loaders",
    "index": "sides:compare_index",
    "cache": "sides:compare_caches",
    "layers": "layers:compare_layers",
    "rank": "ranking:compare_rankings",
    "points": "points:compare_points",
    "head": "head:compare_heads",
}
HEAD = ("command", "ours", "reference", "ratio", "TFLOP ours / reference", "GPU memory ours / reference")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=(*MODES, "count"))
    parser.add_argument("--network", default="mini", help="mini, sd2-1-random or a folder; default: %(default)s")
    parser.add_argument("--repeats", type=positive, default=10, help="rounds of each side; default: %(default)s")
    parser.add_argument("--pairs", type=positive, default=16, help="pairs of a round; default: %(default)s")
    parser.add_argument("--scale", type=positive, default=1, help="index, cache, head: 1/SCALE of the size; default: 1")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings of config/default.py")
    return parser.parse_intermixed_args()


def time_sides(comparison, repeats: int, device) -> None:
    """A round of each side to warm up, then `repeats` rounds in turn."""
    from torch import cuda

    on_gpu = device.type == "cuda"
    for number in range(repeats + 1):
        for side in (comparison.ours, comparison.plain):
            if on_gpu:
                cuda.synchronize(device)
                cuda.reset_peak_memory_stats(device)
            held, start = cuda.memory_allocated(device) if on_gpu else 0, time.perf_counter()
            side.run()
            if on_gpu:
                cuda.synchronize(device)
                own = sum(tensor.nbytes for network in side.networks for tensor in network.state_dict().values())
                side.peak_bytes = max(side.peak_bytes, cuda.max_memory_allocated(device) - held + own)
            if number:
                side.rates.append(side.units / (time.perf_counter() - start))


def describe_device(device) -> str:
    """Its name, of a CPU with the number of threads."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in info if line.startswith("model name")]
    return f"{(names or [platform.processor()])[0]}, {torch.get_num_threads()} thread(s)"


def list_cells(comparison) -> list[str]:
    """A row under HEAD."""
    ours, plain = comparison.ours, comparison.plain
    rates = [f"{spread(side.rates)} {comparison.unit}/s" for side in (ours, plain)]
    ratio = spread([a / b for a, b in zip(ours.rates, plain.rates, strict=True)])
    tflop = f"{ours.tflop:.3g} / {plain.tflop:.3g}" if ours.tflop else "-"
    memory = f"{ours.peak_bytes / 2**30:.2f} / {plain.peak_bytes / 2**30:.2f} GiB" if ours.peak_bytes else "-"
    return [f"`python script/benchmark.py {' '.join(sys.argv[1:])}`", *rates, f"**{ratio}**", tflop, memory]


def spread(values: Sequence[float]) -> str:
    """Median, and in brackets the quartiles."""
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * values[:1]
    return f"{median:.4g} ({q1:.4g} to {q3:.4g})"


def format_counts(work, ensemble: int) -> str:
    """Tables: TFLOP of each part, and of a pair on both sides. ensemble: noise draws of a test."""
    from dataclasses import replace

    from script.speed import flops
    from script.tables.layout import format_rows

    pairs = {
        "training pair": flops.count_training_pair(work),
        f"test pair, {ensemble} noise draws": flops.count_test_pair(replace(work, ensemble=ensemble)),
    }
    tables = {
        ("part", "TFLOP forward", "TFLOP backward to the prompt"): flops.count_parts(work),
        ("TFLOP", "this repository", "reference"): pairs,
    }
    return "\n".join(
        format_rows(head, [[name, *(f"{count / flops.TERA:.5g}" for count in counts)] for name, counts in rows.items()])
        for head, rows in tables.items()
    )


@entry_point(status=2)  # 1 is for sides that disagree
def main() -> int:
    args, load = parse_args(), os.getloadavg()[0]
    from script.speed import sides
    from script.tables.layout import format_rows

    if args.network not in sides.NETWORKS and not Path(args.network).is_dir():
        raise ConfigError(
            f"--network {args.network}: neither {' nor '.join(sides.NETWORKS)}, and there is no such folder"
        )
    with tempfile.TemporaryDirectory(prefix="benchmark-") as root:
        cfg = sides.make_config(args, root)
        if args.mode == "count":
            print(format_counts(sides.make_work(cfg), cfg.TEST.ENSEMBLE))
            return 0
        module, name = MODES[args.mode].split(":")
        compare = getattr(importlib.import_module(f"script.speed.{module}"), name)
        comparison, device = compare(cfg, args), sides.resolve_device(cfg.DEVICE)
        time_sides(comparison, args.repeats, device)
    print(f"{describe_device(device)}, load average {load:.2f}")
    for name, (difference, tolerance) in comparison.differences.items():
        print(f"{name}: {difference:.3g} (at most {tolerance:g})")
    print(f"equal numbers: {'yes' if comparison.equal else 'NO'}\n\n{format_rows(HEAD, [list_cells(comparison)])}")
    return 0 if comparison.equal else 1


if __name__ == "__main__":
    sys.exit(main())
