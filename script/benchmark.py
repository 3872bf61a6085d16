"""Time this repository against a plain reference that works as SD4Match's release does, on the same inputs.

    python script/benchmark.py train --network mini                     # pairs/s of training steps
    python script/benchmark.py test --network mini --prompt CPM         # pairs/s of a test, localisers and PCK included
    python script/benchmark.py features --network mini                  # images/s of a prompt shared by all images
    python script/benchmark.py localise --network sd2-1-random          # four localisers and PCK, 1280 x 48 x 48 maps
    python script/benchmark.py loader --network sd2-1-random            # pairs/s of the data loader alone
    python script/benchmark.py index                                    # seconds to open SPair-71k's full-size index
    python script/benchmark.py cache --network sd2-1-random             # rows/s written and read
    python script/benchmark.py train --network sd2-1-random --count-only    # arithmetic and scaling, nothing is run

Both sides run in one process, in turn (A B A B ...), after warm-up; medians and quartiles are over rounds. Whether both
give the same numbers is checked first. --network is `mini`, `sd2-1-random` (the SD2-1 architecture with random
weights, offline), or a diffusers folder (then also set CONDITION.DINO_FOLDER); `index` needs none.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.argument import positive  # noqa: E402
from engine.entry import entry_point  # noqa: E402

MODES = ("train", "test", "features", "localise", "loader", "index", "cache")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("mode", choices=MODES)
    add("--network", default="mini", help="mini, sd2-1-random or a folder; default: %(default)s")
    add("--device", help="auto (default), cpu, cuda, ...")
    add("--precision", help="auto (default), fp32, bf16 or fp16, of the frozen networks")
    add("--batch_size", type=positive, help="pairs (images) per step; default: the config's")
    add("--image_size", type=positive, help="pixels per side; default: the config's")
    add("--ensemble", type=positive, help="noise draws of test and features; default: the config's")
    add("--prompt", choices=("CPM", "text"), default="CPM", help="what test tests; default: %(default)s")
    add("--repeats", type=positive, default=10, help="rounds of each side; default: %(default)s")
    add("--warmup", type=positive, default=1, help="rounds before the first that counts; default: %(default)s")
    add("--steps", type=positive, default=2, help="train: optimiser steps in a round; default: %(default)s")
    add("--pairs", type=positive, default=16, help="rendered pairs, or pairs of localise; default: %(default)s")
    add("--pairs_per_s", type=float, help="--count-only: speed of one process that the projection starts from")
    add("--scale", type=positive, default=1, help="index, cache: 1/SCALE of the full size; default: %(default)s")
    add("--output", type=Path, help="write the result to this JSON file")
    add("--markdown", action="store_true", help="also print the row for docs/performance.md")
    add("--profile", action="store_true", help="train: where the time of a step goes, instead of a comparison")
    add("--count-only", action="store_true", help="train: count arithmetic and gradient bytes, run nothing")
    add("opts", nargs="*", metavar="KEY VALUE", help="settings of config/default.py, such as NETWORK.RECOMPUTE True")
    args = parser.parse_intermixed_args()
    if args.mode != "train" and (args.profile or args.count_only):
        parser.error("--profile and --count-only go with train")
    if args.network not in ("mini", "sd2-1-random") and not Path(args.network).is_dir():
        parser.error(f"--network {args.network}: neither mini nor sd2-1-random, and there is no such folder")
    return args


def run(args: argparse.Namespace) -> int:
    """Do what the arguments say; the process's exit status: 1 if the two sides disagree."""
    from script.speed import count, host, profile, report, testing, training

    if args.count_only or args.profile:
        print((count.run_count if args.count_only else profile.run_profile)(args))
        return 0
    modes = {"train": training.run_train, "test": testing.run_test, "features": testing.run_features}
    modes |= {
        "localise": host.run_localise,
        "loader": host.run_loader,
        "index": host.run_index,
        "cache": host.run_cache,
    }
    result = modes[args.mode](args)
    result["command"] = describe_command(sys.argv[1:])
    print(report.format_result(result))
    if args.markdown:
        print(f"\n{report.MARKDOWN_HEAD}\n{report.format_markdown(result)}")
    if args.output:
        from engine.result import write_text

        write_text(args.output, report.format_json(result))
    return 0 if result["check"]["passed"] else 1


def describe_command(arguments: list[str]) -> str:
    """The command line, without what says where the result goes."""
    kept = [word for i, word in enumerate(arguments) if "--output" not in (word, *arguments[max(0, i - 1) : i])]
    return " ".join(["python", "script/benchmark.py", *(word for word in kept if word != "--markdown")])


@entry_point(status=2)  # 1 is for sides that disagree
def main() -> int:
    args = parse_args()
    args.load_average = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return run(args)


if __name__ == "__main__":
    sys.exit(main())
