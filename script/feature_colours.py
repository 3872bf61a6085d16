"""Feature maps of some images of one category under several prompts, as colours: equal colours are similar features.

python script/feature_colours.py --config_file config/mini/base.yaml --category dog --prompts text empty
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import check_config, load_config, resolve_path  # noqa: E402


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config_file", help="YAML file; default: config/default.py as it is")
    parser.add_argument("--category", required=True)
    parser.add_argument("--prompts", nargs="+", required=True, help="`text`, `empty`, or names of learned prompts")
    parser.add_argument("--pairs", type=int, choices=range(1, 9), default=2, help="pairs of images; default: 2")
    parser.add_argument("--output", help="path of the picture; default: OUTPUT_ROOT/figure/features_CATEGORY.png")
    parser.add_argument("--opts", nargs="*", default=[], metavar="KEY VALUE", help="settings, as given to test.py")
    return parser.parse_args()


def extract(cfg, n_pairs: int) -> tuple[list, list]:
    """Images and feature maps, source and target of each pair in turn."""
    from dataset.pair_dataset import load_image
    from utils.build import build_test
    from utils.evaluate import extract_pairs

    accelerator, pairs, matcher = build_test(cfg)
    positions = [len(pairs) * number // n_pairs for number in range(n_pairs)]
    records = [pairs.benchmark[position] for position in positions]
    images = [load_image(ref, pairs.image_size) for record in records for ref in (record.src, record.trg)]
    maps = []
    for _, src_feat, trg_feat in extract_pairs(matcher, pairs, positions, cfg.SEED, 1, accelerator.device):
        maps += [src_feat[0].detach().cpu(), trg_feat[0].detach().cpu()]
    return images, maps


def main() -> int:
    args = parse_args()
    import torch

    from utils.draw import save_figure
    from utils.errors import USER_ERRORS, explain
    from utils.plot import draw_feature_colours

    try:
        maps = {}
        for name in args.prompts:
            cfg = load_config(args.config_file, args.opts, {"PROMPT.TYPE": name, "DATASET.CATEGORY": args.category})
            check_config(cfg, training=False)
            with torch.no_grad():
                images, maps[name] = extract(cfg, args.pairs)
    except USER_ERRORS as error:
        print(f"feature_colours.py: {explain(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    path = args.output or f"{resolve_path(cfg.OUTPUT_ROOT)}/figure/features_{args.category}.png"
    save_figure(path, draw_feature_colours(images, maps))
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
