"""Does precision change results? Features and PCK of the same test pairs in each, against the first, with intervals.

    python script/precision.py --config_file config/mini/base.yaml
    python script/precision.py --prompt_type CPM_spair_mini_Pair-DINO-Feat-G25-C50 --pairs 200 --precisions fp32 bf16

Prints a table in markdown. Features: relative root mean square difference over the first pairs. Intervals are 95 %
bootstraps over pairs, of differences over the same pairs.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import load_config
from engine.argument import positive
from engine.check import check_config
from engine.entry import entry_point

PRECISIONS = ("fp32", "fp16", "bf16")
FEATURE_PAIRS = 16  # whose feature maps are compared


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--config_file", default="config/mini/sd4match_cpm.yaml", help="YAML file; default: %(default)s")
    add("--prompt_type", default="text", help="`text`, `empty`, or a learned prompt; default: %(default)s")
    add("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS, help="default: all of them")
    add("--pairs", type=positive, help="test pairs, evenly spaced; default: all")
    add("--opts", nargs="*", default=[], metavar="KEY VALUE", help="settings of config/default.py")
    return parser.parse_args()


def run_precision(cfg, n_pairs: int | None) -> tuple:
    """Scores of the pairs, and the feature maps of the first of them in one vector."""
    import torch

    from engine.build import build_test
    from engine.evaluate import evaluate, match_pairs

    def choose(pairs) -> list[int]:
        count = min(n_pairs or len(pairs), len(pairs))
        return [i * len(pairs) // count for i in range(count)]

    accelerator, pairs, method = build_test(cfg, choose)
    scores = evaluate(cfg, method, pairs, accelerator.device)
    with torch.no_grad():
        found = match_pairs(method, pairs, range(min(FEATURE_PAIRS, len(pairs))), cfg.SEED, accelerator.device)
        maps = [feat.cpu().flatten() for _, pair in found for feat in (pair.src_feat, pair.trg_feat)]
    return scores, torch.cat(maps)


def format_row(precision: str, found: tuple, first: tuple, measure) -> str:
    """A row of the table; the first is what the others are compared with."""
    from utils.statistics import bootstrap, compare

    (scores, features), (first_scores, first_features) = found, first
    pck = bootstrap(scores, measure)
    cells = [precision, "-", "{:.2f} [{:.2f}, {:.2f}]".format(*(100 * v for v in (pck.value, pck.low, pck.high))), "-"]
    if found is not first:
        change = compare(first_scores, scores, measure).difference
        cells[1] = f"{((features - first_features).norm() / first_features.norm()).item():.1e}"
        cells[3] = "{:+.2f} [{:+.2f}, {:+.2f}]".format(*(100 * v for v in (change.value, change.low, change.high)))
    return f"| {' | '.join(cells)} |"


@entry_point()
def main() -> None:
    args, configs = parse_args(), {}
    for precision in args.precisions:
        overrides = {"PROMPT.TYPE": args.prompt_type, "PRECISION": precision}
        configs[precision] = check_config(load_config(args.config_file, args.opts, overrides), training=False)
    from utils.statistics import Measure

    section = configs[args.precisions[0]].EVAL
    measure = Measure(section.PICTURE_LOCALISER, section.PICTURE_ALPHA, section.BY, section.AVERAGE)
    first, rows = None, []
    for precision, cfg in configs.items():
        found = run_precision(cfg, args.pairs)
        first = first or found
        rows.append(format_row(precision, found, first, measure))
    against, pairs = args.precisions[0], len(first[0])
    head = (
        f"{pairs} pairs | features against {against} | PCK@{measure.alpha:g}, {measure.localiser} | against {against}"
    )
    print(f"\n{args.prompt_type}\n\n| {head} |\n|---|---|---|---|", *rows, sep="\n")


if __name__ == "__main__":
    sys.exit(main())
