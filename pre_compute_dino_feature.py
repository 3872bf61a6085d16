"""Compute the DINOv2 features of every image of a benchmark and keep them on disk.

    python pre_compute_dino_feature.py [--config_file config/mini/base.yaml] [--datasets spair pfpascal] [KEY VALUE ...]

train.py and test.py do this by themselves for the images that they need; this does it for all splits at once.
"""

import argparse
import sys

from config import load_config
from engine.check import check_config
from engine.entry import entry_point


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config_file", help="YAML file; default: config/default.py as it is")
    parser.add_argument("--datasets", nargs="+", metavar="NAME", help="default: all that are in DATASET.ROOT")
    conditions = ("DINO-Feat", "DINO-Head", "CLIP-Feat", "CLIP-Head")
    parser.add_argument("--condition", default=conditions[0], choices=conditions, help="default: %(default)s")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings, such as DATASET.ROOT /data")
    return parser.parse_intermixed_args()


def compute(config_file: str | None, opts: list[str], names: list[str] | None, condition: str) -> None:
    """Fill the condition's cache for every image of the named benchmarks."""
    from engine.build import build_accelerator, build_all_splits, find_datasets
    from engine.precompute import fill_from_source, unique_images
    from model.source import condition_source

    for name in names or find_datasets(load_config(config_file, opts)):
        cfg = check_config(load_config(config_file, opts, {"DATASET.NAME": name}), training=False)
        refs = unique_images(build_all_splits(cfg))
        source = condition_source(cfg, condition)
        cache = fill_from_source(cfg, source, refs, build_accelerator(cfg))
        print(f"{name}: {len(refs)} images in {cache.folder}")


@entry_point("what is finished is kept")
def main() -> int:
    args = parse_args()
    compute(args.config_file, args.opts, args.datasets, args.condition)
    return 0


if __name__ == "__main__":
    sys.exit(main())
