"""Write the mini benchmarks: python -m mini.render --root asset/mini/data [--only spair]."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from engine.entry import entry_point
from mini.render.write import WRITERS, install


@entry_point()
def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m mini.render", description=__doc__)
    parser.add_argument("--root", default="asset/mini/data", help="folder that receives the benchmarks")
    parser.add_argument("--only", choices=tuple(WRITERS), help="write one benchmark (default: all)")
    args = parser.parse_args()
    Path(args.root).mkdir(parents=True, exist_ok=True)
    for name in [args.only] if args.only else WRITERS:
        start = time.perf_counter()
        try:
            counts = install(args.root, name)
        except OSError as error:
            sys.exit(f"mini.render: {error}")
        place = Path(args.root) / WRITERS[name][0]
        if counts is None:
            print(f"{name}: already there ({place})")
        else:
            text = ", ".join(f"{n} {what}" for what, n in counts.items())
            print(f"{name}: {text} in {time.perf_counter() - start:.1f} s ({place})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
