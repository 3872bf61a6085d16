"""Compare prompts that test.py has run with one config: a table, and pictures of the same pairs under each prompt.

python script/compare.py --config_file config/mini/base.yaml --prompts text CPM_spair_mini_Pair-DINO-Feat-G25-C50
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import ConfigError, load_config, resolve_path  # noqa: E402
from engine.check import check_config  # noqa: E402
from engine.entry import entry_point  # noqa: E402


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config_file", help="YAML file")
    parser.add_argument("--prompts", nargs="+", required=True, help="`text`, `empty`, or names of learned prompts")
    parser.add_argument("--pairs", type=int, default=4, help="pairs to draw; default: %(default)s")
    parser.add_argument("--output", help="folder of the pictures; default: OUTPUT_ROOT/figure")
    parser.add_argument("--opts", nargs="*", default=[], metavar="KEY VALUE", help="settings, as given to test.py")
    return parser.parse_args()


def read_summary(cfg) -> dict:
    """What test.py wrote for the configured prompt."""
    from engine.export import read_result
    from engine.report import build_result_stem

    path = Path(f"{build_result_stem(cfg)}.json")
    if not path.is_file():
        raise ConfigError(
            f"{path} is not there; run test.py with --prompt_type {cfg.PROMPT.TYPE} and the same settings first"
        )
    return read_result(path)["summary"]


def format_comparison(summaries: dict[str, dict], localiser: str) -> str:
    """One line per prompt: PCK in percent at each alpha."""
    width = max(len(name) for name in summaries) + 2
    first = next(iter(summaries.values()))
    lines = [
        f"{localiser}, {first['pairs']} pairs",
        " " * width + "".join(f"@{key:<9}" for key in first["pck"][localiser]),
    ]
    for name, summary in summaries.items():
        values = (f"{100 * row['all']:<10.2f}" for row in summary["pck"][localiser].values())
        lines.append(f"{name:<{width}}" + "".join(values))
    return "\n".join(lines)


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
def main() -> int:
    args = parse_args()
    configs = {}
    for name in args.prompts:
        configs[name] = load_config(args.config_file, args.opts, {"PROMPT.TYPE": name})
        check_config(configs[name], training=False)
    first = configs[args.prompts[0]]
    summaries = {name: read_summary(cfg) for name, cfg in configs.items()}
    draw_comparison(configs, args.pairs, Path(args.output or Path(resolve_path(first.OUTPUT_ROOT)) / "figure"))
    print(format_comparison(summaries, first.EVAL.PICTURE_LOCALISER))
    return 0


if __name__ == "__main__":
    sys.exit(main())
