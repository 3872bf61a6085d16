"""Compare prompts that test.py has run with one config: a table, and pictures of the same pairs under each prompt.

python script/compare.py --config_file config/mini/base.yaml --prompts text CPM_spair_mini_Pair-DINO-Feat-G25-C50
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import ConfigError, load_config, resolve_path
from engine.check import check_config
from engine.entry import entry_point


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config_file", help="YAML file")
    parser.add_argument("--prompts", nargs="+", required=True, help="`text`, `empty`, or names of learned prompts")
    parser.add_argument("--pairs", type=int, default=4, help="pairs to draw; default: %(default)s")
    parser.add_argument("--output", help="folder of the pictures; default: OUTPUT_ROOT/figure")
    parser.add_argument("--opts", nargs="*", default=[], metavar="KEY VALUE", help="settings, as given to test.py")
    return parser.parse_args()


def compare_scores(configs: dict) -> str:
    """A line for each prompt: PCK in percent at each alpha, of the localiser of config section EVAL."""
    import pandas as pd

    from engine.build import build_pairs
    from engine.identity import find_result, what_makes_result
    from engine.report import build_result_stem
    from engine.result import PAIRS, describe, read_scores
    from utils.pck import TOTAL, summarise
    from utils.statistics import select_common

    tables = []
    for name, cfg in configs.items():
        stem = find_result(build_result_stem(cfg), what_makes_result(cfg, build_pairs(cfg, cfg.TEST.SPLIT)))
        if stem is None:
            wanted = f"{build_result_stem(cfg)}.json is not there, or something else made it"
            raise ConfigError(f"{wanted}; run test.py --prompt_type {name} with the same settings first")
        tables.append(read_scores(f"{stem}{PAIRS}"))
    common = select_common(tables)
    if any(len(table) > len(common[0]) for table in tables):
        raise ConfigError(f"the prompts were tested on different pairs: run test.py again for {', '.join(configs)}")
    rows, section = {}, next(iter(configs.values())).EVAL
    for name, scores in zip(configs, common, strict=True):
        summary = summarise(scores, [section.PICTURE_LOCALISER], section.ALPHAS, section.BY, section.AVERAGE)
        row = summary["pck"][section.PICTURE_LOCALISER]
        rows[name] = {f"@{alpha}": 100 * values[TOTAL] for alpha, values in row.items()}
    table = pd.DataFrame.from_dict(rows, orient="index").to_string(float_format="{:.2f}".format, col_space=8)
    return f"{describe(summary)}; {section.PICTURE_LOCALISER}, percent\n{table}"


def draw_comparison(configs: dict, n_pairs: int, folder: Path) -> None:
    """Match lines per prompt, and one picture of all prompts' correlation maps, for each chosen pair."""
    from engine.picture import choose_pairs, choose_point, match_pair
    from script.figure import collect
    from utils.draw import WIDE_PANEL, plot_correlations, plot_matches, save_figure

    rows = collect(configs, lambda pairs: choose_pairs(pairs, n_pairs), match_pair)
    for number, by_prompt in enumerate(rows):
        for name, pair in by_prompt.items():
            save_figure(folder / f"{number}_matches_{name}.png", plot_matches([{name: pair}], WIDE_PANEL))
        correlation = plot_correlations([by_prompt], [choose_point(by_prompt)], WIDE_PANEL)
        save_figure(folder / f"{number}_correlation.png", correlation)
    print(f"{len(rows)} pairs drawn in {folder}")


@entry_point()
def main() -> None:
    args = parse_args()
    configs = {name: load_config(args.config_file, args.opts, {"PROMPT.TYPE": name}) for name in args.prompts}
    for cfg in configs.values():
        check_config(cfg, training=False)
    table = compare_scores(configs)
    output = args.output or f"{resolve_path(configs[args.prompts[0]].OUTPUT_ROOT)}/figure"
    draw_comparison(configs, args.pairs, Path(output))
    print(table)


if __name__ == "__main__":
    sys.exit(main())
