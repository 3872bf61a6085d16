"""Make masks of the objects of a benchmark with SAM, prompted by their boxes, for POSE.ALIGN mask.

    python script/make_masks.py --config_file config/spair/base.yaml --out asset/mask/spair
    python test.py --config_file config/spair/dift.yaml POSE.ALIGN mask POSE.MASKS asset/mask/spair

A PNG per image, 0 and 255, of the image's size. Images that have one are left alone: run it again, and it goes on.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.entry import entry_point


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--config_file", help="YAML file; default: config/default.py as it is")
    add("--out", type=Path, required=True, help="the folder that POSE.MASKS is to name")
    add("--sam", default="facebook/sam-vit-huge", help="transformers folder or hub id; default: %(default)s")
    add("opts", nargs="*", metavar="KEY VALUE", help="settings, such as DATASET.NAME ap10k TEST.SPLIT test")
    return parser.parse_intermixed_args()


@entry_point("masks written so far are kept")
def main() -> None:
    args = parse_args()
    from config import load_config
    from engine.build import build_pairs
    from engine.masks import find_boxes, load_sam, make_masks
    from model.backbone.device import resolve_device
    from utils.progress import progress

    cfg = load_config(args.config_file, args.opts)
    benchmark = build_pairs(cfg, cfg.TEST.SPLIT).benchmark
    segment = load_sam(args.sam, resolve_device(cfg.DEVICE))
    images = progress(benchmark.images(), "masks", unit=" images")
    print(f"{make_masks(images, find_boxes(benchmark), args.out, segment)} masks written to {args.out}")


if __name__ == "__main__":
    sys.exit(main())
