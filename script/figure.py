"""Draw a figure of the paper, for any prompts and pairs; docs/figures.md shows what each looks like.

    python script/figure.py matches --config_file config/mini/base.yaml --prompts text empty --output matches.pdf

The name of --output decides the format: .png, .jpg, .pdf or .svg.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import ConfigError, load_config, resolve_path
from engine.argument import positive
from engine.check import check_config
from engine.entry import entry_point

EXAMPLE = str(Path(__file__).resolve().parents[1] / "app" / "static" / "example" / "dog_source.jpg")


def draw_matches(args: argparse.Namespace, columns: dict):
    """match lines between source and target, right and wrong apart; a row for each pair, a column for each prompt"""
    from engine.picture import match_pair
    from utils.draw import plot_matches

    return plot_matches(collect(columns, build_choice(args), match_pair))


def draw_correlation(args: argparse.Namespace, columns: dict):
    """heat maps: similarity of one source point with the target under each prompt; a row for each pair"""
    from engine.picture import choose_point, match_pair
    from utils.draw import plot_correlations

    rows = collect(columns, build_choice(args), match_pair)
    counts = [len(next(iter(row.values())).src_kps) for row in rows]
    if 0 in counts:
        raise ConfigError(f"--pair_ids: pair {counts.index(0) + 1} of the list has no keypoint to correlate")
    points = args.points or [choose_point(row) for row in rows]
    if len(points) != len(rows) or not all(0 <= p < n for p, n in zip(points, counts, strict=True)):
        raise ConfigError(f"--points: the rows have {counts} keypoints; give the index of one for each, from 0")
    return plot_correlations(rows, points)


def draw_dense(args: argparse.Namespace, columns: dict):
    """dense matches: colours of places carried from target to source, the target warped, the forward-backward error"""
    from engine.picture import match_pair_densely
    from utils.draw import plot_dense

    if args.grid < 2:
        raise ConfigError(f"--grid must be at least 2, got {args.grid}")
    return plot_dense(collect(columns, build_choice(args), partial(match_pair_densely, grid=args.grid)))


def draw_generated(args: argparse.Namespace, columns: dict):
    """images that Stable Diffusion generates from each prompt, beside the pair that it was made for"""
    from engine.picture import PairGenerator
    from utils.draw import plot_generated

    generators = {}

    def generate(cfg, method, pairs, position: int, device):
        if getattr(method, "prompt", None) is None:
            raise ConfigError(f"METHOD.NAME {cfg.METHOD.NAME} takes no prompt, so there is nothing to generate from")
        generator = generators.setdefault(id(cfg), PairGenerator(cfg, device))
        return generator.generate(method.prompt, pairs, position, args.seeds)

    return plot_generated(collect(columns, build_choice(args), generate))


def draw_features(args: argparse.Namespace, columns: dict):
    """feature maps as colours under each prompt: equal colours are similar features; a row for each pair"""
    from engine.picture import extract_features
    from utils.plot import plot_feature_colours

    return plot_feature_colours(collect(columns, build_choice(args), extract_features))


def draw_timestep(args: argparse.Namespace, columns: dict):
    """accuracy over the diffusion timestep, a curve for each prompt, from results of test.py at several timesteps"""
    from app.viewer import find_results
    from utils.plot import plot_curves
    from utils.statistics import Measure, compute_pck

    results = find_results(args.results)
    section, where = results[0].config.EVAL, results[0].split
    measure = Measure(section.PICTURE_LOCALISER, section.PICTURE_ALPHA, section.BY, section.AVERAGE)
    curves: dict[str, dict[int, float]] = {}
    for result in results:
        curve, timestep = curves.setdefault(result.name, {}), result.config.TEST.TIMESTEP
        if timestep in curve or result.split != where:
            raise ConfigError(f"{result.stem}: another result of {result.name} at t = {timestep}, or of another split")
        curve[timestep] = 100 * (compute_pck(result.scores, measure) or 0)
    label = f"PCK@{measure.alpha:g}, {measure.localiser}, {' '.join(where)} (%)"
    return plot_curves({name: dict(sorted(curve.items())) for name, curve in curves.items()}, "timestep", label)


def draw_attention(args: argparse.Namespace, columns: dict):
    """where the network looks for each word of a text, or for tokens of learned prompts, on photos; a row for each"""
    from engine.words import WordReader
    from model.backbone.device import resolve_device
    from utils.draw import plot_token_maps
    from utils.image import read_image

    images, rows = [read_image(path).image for path in args.images], []
    for name in [None] * bool(args.words) + args.learned:
        opts = ["PROMPT.TYPE", name] if name else []
        cfg = check_config(load_config(args.config_file, [*args.opts, *opts]), training=False)
        reader = WordReader(cfg, resolve_device(cfg.DEVICE), args.layers)
        for image in images:
            rows += [reader.read_words(image, text) for text in args.words] if name is None else []
            rows += [reader.read_prompt(image, args.category, args.tokens)] if name else []
    if not rows:
        raise ConfigError("nothing to show: give --words or --learned")
    return plot_token_maps(rows)


def draw_losses(args: argparse.Namespace, columns: dict):
    """loss over the steps in which LDM_correspondences finds its embeddings: mean over the points in each folder"""
    from model.method.embedding_store import read_losses
    from utils.plot import plot_curves

    curves = {Path(folder).name: read_losses(folder).mean(dim=0).tolist() for folder in args.results}
    return plot_curves({name: dict(enumerate(curve)) for name, curve in curves.items()}, "step", "loss", from_zero=True)


FIGURES: dict[str, tuple[Callable, int]] = {  # what draws each kind, and its rows by default
    "matches": (draw_matches, 4),
    "correlation": (draw_correlation, 4),
    "dense": (draw_dense, 4),
    "generate": (draw_generated, 3),
    "features": (draw_features, 2),
    "timestep": (draw_timestep, 0),
    "attention": (draw_attention, 0),
    "losses": (draw_losses, 0),
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for name, (draw, n_rows) in FIGURES.items():
        kind = kinds.add_parser(name, help=draw.__doc__, description=draw.__doc__)
        if n_rows:
            add_pair_arguments(kind, n_rows)
        if name == "correlation":
            text = "index of the keypoint for each row; default: where the prompts first differ"
            kind.add_argument("--points", nargs="+", type=int, help=text)
        elif name == "dense":
            text = "places matched along each side of an image; default: %(default)s"
            kind.add_argument("--grid", type=int, default=96, help=text)
        elif name == "generate":
            text = "an image of each prompt for each; default: 0 1"
            kind.add_argument("--seeds", nargs="+", type=int, default=[0, 1], help=text)
        elif name == "timestep":
            kind.add_argument("results", nargs="+", help="folders, or *_pairs.csv files of test.py")
        elif name == "losses":
            kind.add_argument("results", nargs="+", help="folders LDM-embedding/DATASET/cached_output.KEY")
        elif name == "attention":
            kind.add_argument(
                "--words", nargs="+", default=[], metavar="TEXT", help="texts: a row each, a map per word"
            )
            kind.add_argument("--learned", nargs="+", default=[], metavar="NAME", help="learned prompts: a row each")
            kind.add_argument("--images", nargs="+", default=[EXAMPLE], help="photos; default: %(default)s")
            kind.add_argument("--layers", nargs="+", default=[], help="such as up1.0; default: all cross-attention")
            kind.add_argument("--tokens", type=positive, default=6, help="of a learned prompt; default: %(default)s")
            kind.add_argument("--category", help="of the photos, for prompts of a category each")
        kind.add_argument("--config_file", help="YAML file; default: config/default.py as it is")
        kind.add_argument("--output", help="path of the figure; default: OUTPUT_ROOT/figure/KIND_DATASET.png")
        kind.add_argument("--opts", nargs="*", default=[], metavar="KEY VALUE", help="settings, as given to test.py")
    return parser.parse_args()


def add_pair_arguments(parser: argparse.ArgumentParser, n_pairs: int) -> None:
    """Which columns and which rows."""
    add = parser.add_argument
    add("--prompts", nargs="+", default=[], help="a column each: `text`, `empty`, or learned prompts")
    text = "a column with its own title and settings, such as: DIFT PROMPT.TYPE text TEST.TIMESTEP 261"
    add("--column", nargs="+", action="append", default=[], metavar=("TITLE", "KEY VALUE"), help=text)
    chosen = parser.add_mutually_exclusive_group()
    text = "rows: so many pairs, one category after the other; default: %(default)s"
    chosen.add_argument("--pairs", type=positive, default=n_pairs, help=text)
    chosen.add_argument("--pair_ids", nargs="+", default=[], help="rows: the pairs of these ids (see a result's CSV)")


def load_columns(args: argparse.Namespace) -> dict:
    """{title: checked config} of the columns that the arguments ask for; a method without a prompt is one itself."""
    from model.method import METHODS

    asked = [(name, ["PROMPT.TYPE", name]) for name in args.prompts]
    method = load_config(args.config_file, args.opts).METHOD.NAME
    if method in METHODS and not METHODS[method].takes_prompt:
        asked = [(method, opts) for _, opts in asked] or [(method, [])] * (not args.column)
    asked += [(title, opts) for title, *opts in args.column]
    columns = {title: load_config(args.config_file, [*args.opts, *opts]) for title, opts in asked}
    if not columns:
        raise ConfigError("nothing to show: give --prompts or --column")
    if len(columns) < len(asked):
        raise ConfigError(f"two columns have the same title: {', '.join(title for title, _ in asked)}")
    for cfg in columns.values():
        check_config(cfg, training=False)
    return columns


def build_choice(args: argparse.Namespace) -> Callable[[object], list[int]]:
    """What chooses the rows from the pairs of a split."""
    from engine.picture import choose_pairs

    return lambda pairs: find_ids(pairs, args.pair_ids) if args.pair_ids else choose_pairs(pairs, args.pairs)


def find_ids(pairs, wanted: Sequence[str]) -> list[int]:
    """Positions of the pairs with these ids."""
    position = {record.pair_id: place for place, record in enumerate(pairs.benchmark)}
    if missing := [name for name in wanted if name not in position]:
        raise ConfigError(f"--pair_ids: no pair {', '.join(missing)} in this split; one is {next(iter(position))}")
    return [position[name] for name in wanted]


def collect(columns: dict, choose: Callable[[object], Sequence[int]], extract: Callable) -> list[dict]:
    """For each pair that `choose` picks, {title: extract(config, method, pairs, position, device)}."""
    from engine.build import build_test
    from utils.progress import progress

    rows: dict[int, dict] = {}
    for title, cfg in columns.items():
        accelerator, pairs, method = build_test(cfg, choose)
        for position in progress(range(len(pairs)), f"drawing pairs under {title}", unit="pair"):
            found = extract(cfg, method, pairs, position, device=accelerator.device)
            rows.setdefault(position, {})[title] = found
    return list(rows.values())


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
def main() -> None:
    args = parse_args()
    from utils.draw import save_figure

    draw, n_rows = FIGURES[args.kind]
    columns = load_columns(args) if n_rows else {}
    path = find_output(args, next(iter(columns.values()), load_config(args.config_file, args.opts)))
    save_figure(path, draw(args, columns))
    print(f"written: {path}")


if __name__ == "__main__":
    sys.exit(main())
