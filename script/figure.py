"""Draw a figure of the paper, for any prompts and pairs; docs/figures.md shows what each looks like.

    python script/figure.py matches --config_file config/mini/base.yaml --prompts text empty --output matches.pdf

The name of --output decides the format: .png, .pdf or .svg.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import ConfigError, load_config, resolve_path  # noqa: E402
from engine.check import check_config  # noqa: E402
from engine.entry import entry_point  # noqa: E402
from script.figures import FIGURES  # noqa: E402


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for name, figure in FIGURES.items():
        kind = kinds.add_parser(name, help=figure.__doc__, description=figure.__doc__)
        figure.add_arguments(kind)
        kind.add_argument("--config_file", help="YAML file; default: config/default.py as it is")
        kind.add_argument("--output", help="path of the figure; default: OUTPUT_ROOT/figure/KIND_DATASET.png")
        kind.add_argument("--opts", nargs="*", default=[], metavar="KEY VALUE", help="settings, as given to test.py")
    return parser.parse_args()


def load_columns(args: argparse.Namespace) -> dict:
    """{title: checked config} of the columns that the arguments ask for; a matcher without a prompt is one itself."""
    from model.method import METHODS

    asked = [(name, ["PROMPT.TYPE", name]) for name in getattr(args, "prompts", [])]
    matcher = load_config(args.config_file, args.opts).METHOD.NAME
    if matcher in METHODS and not METHODS[matcher].takes_prompt and hasattr(args, "prompts"):
        asked = [(matcher, opts) for _, opts in asked] or [(matcher, [])] * (not args.column)
    asked += [(title, opts) for title, *opts in getattr(args, "column", [])]
    columns = {title: load_config(args.config_file, [*args.opts, *opts]) for title, opts in asked}
    if hasattr(args, "prompts") and not columns:
        raise ConfigError("nothing to show: give --prompts or --column")
    if len(columns) < len(asked):
        raise ConfigError(f"two columns have the same title: {', '.join(title for title, _ in asked)}")
    for cfg in columns.values():
        check_config(cfg, training=False)
    return columns


def find_output(args: argparse.Namespace, cfg) -> str:
    """Where the figure goes; refuses a format that is not known."""
    from utils.draw import find_format

    path = args.output or f"{resolve_path(cfg.OUTPUT_ROOT)}/figure/{args.kind}_{cfg.DATASET.NAME}.png"
    try:
        find_format(path)
    except ValueError as error:
        raise ConfigError(f"--output {error}") from error
    return path


@entry_point()
def main() -> int:
    args = parse_args()
    from utils.draw import save_figure

    columns = load_columns(args)
    path = find_output(args, next(iter(columns.values()), load_config(args.config_file, args.opts)))
    save_figure(path, FIGURES[args.kind].build(args, columns))
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
