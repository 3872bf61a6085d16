"""PCK of prompts over the diffusion timestep: a CSV and a picture.

    python script/sweep_timestep.py --config_file config/mini/base.yaml --prompts text empty --timesteps 0 50 261

Each timestep is written as soon as it is finished, and the same command goes on from there. Choose a timestep on
validation pairs (--split val, the default), not on the test split.
"""

import argparse
import csv
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import ConfigError, change_config, dump_config, load_config, resolve_path  # noqa: E402
from engine.check import check_config  # noqa: E402
from engine.entry import entry_point  # noqa: E402

COLUMNS = ("prompt", "timestep", "pck")
Scores = dict[tuple[str, int], float]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config_file", help="YAML file; default: config/default.py as it is")
    parser.add_argument("--prompts", nargs="+", required=True, help="`text`, `empty`, or names of learned prompts")
    parser.add_argument("--timesteps", nargs="+", type=int, default=[0, 50, 100, 150, 200, 261, 300, 400, 500])
    parser.add_argument("--split", default="val")
    parser.add_argument("--output", help="path of the files without suffix; default: OUTPUT_ROOT/figure/timestep_...")
    parser.add_argument("--overwrite", action="store_true", help="forget what an earlier sweep wrote")
    parser.add_argument("--opts", nargs="*", default=[], metavar="KEY VALUE", help="settings, as given to test.py")
    return parser.parse_args()


def sweep(cfg, timesteps: list[int]) -> Iterator[tuple[int, float]]:
    """(timestep, PCK in percent of the picture's localiser and alpha of config section EVAL), one after the other."""
    from engine.build import build_test
    from engine.report import evaluate_split
    from utils.pck import alpha_key

    accelerator, pairs, matcher = build_test(cfg)
    for timestep in timesteps:
        summary, _ = evaluate_split(cfg, matcher.at(timestep, cfg.TEST.ENSEMBLE), pairs, accelerator)
        row = summary["pck"][cfg.EVAL.PICTURE_LOCALISER][alpha_key(cfg.EVAL.PICTURE_ALPHA)]
        yield timestep, 100 * row["all"]


def read_scores(path: Path) -> Scores:
    """{(prompt, timestep): PCK in percent} of a file of `write_scores`; ConfigError if it is something else."""
    with open(path, newline="", encoding="utf-8") as file:
        try:
            return {(row["prompt"], int(row["timestep"])): float(row["pck"]) for row in csv.DictReader(file)}
        except (KeyError, TypeError, ValueError) as error:
            expected = f"expected the columns {','.join(COLUMNS)}"
            reason = type(error).__name__  # the message of a UnicodeDecodeError holds the whole file
            raise ConfigError(f"{path} is no table of a timestep sweep: {expected} ({reason})") from error


def read_curves(path: Path) -> dict[str, dict[int, float]]:
    """`group_scores` of the same file; ConfigError if it is empty."""
    if not (scores := read_scores(path)):
        raise ConfigError(f"{path} has no rows")
    return group_scores(scores)


def group_scores(scores: Scores) -> dict[str, dict[int, float]]:
    """prompt -> {timestep: PCK in percent}, in the order of the timesteps."""
    curves: dict[str, dict[int, float]] = {}
    for (prompt, timestep), value in sorted(scores.items(), key=lambda entry: entry[0][1]):
        curves.setdefault(prompt, {})[timestep] = value
    return curves


def write_scores(path: Path, scores: Scores) -> None:
    from utils.store import atomic_path

    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows([prompt, timestep, f"{value:.4f}"] for (prompt, timestep), value in scores.items())


def recall(stem: Path, cfg, overwrite: bool) -> Scores:
    """What an earlier sweep with the same settings has written; ConfigError if its settings were others."""
    from engine.result import write_text

    table, settings = Path(f"{stem}.csv"), Path(f"{stem}.yaml")
    text = dump_config(change_config(cfg, {"PROMPT.TYPE": "text"}))
    if table.is_file() and not overwrite:
        if not settings.is_file() or settings.read_text(encoding="utf-8") != text:
            raise ConfigError(f"{table} was made with other settings; give --overwrite or another --output")
        return read_scores(table)
    table.unlink(missing_ok=True)
    write_text(settings, text)
    return {}


def draw(stem: Path, cfg, prompts: list[str], scores: Scores) -> None:
    from utils.draw import save_figure
    from utils.plot import plot_curves

    curves = group_scores(scores)
    pairs = f"{cfg.DATASET.NAME} {cfg.TEST.SPLIT} {cfg.DATASET.CATEGORY}"
    measure = f"PCK@{cfg.EVAL.PICTURE_ALPHA:g}, {cfg.EVAL.PICTURE_LOCALISER}, {pairs} (%)"
    save_figure(f"{stem}.png", plot_curves({prompt: curves[prompt] for prompt in prompts}, "timestep", measure))


def run(args: argparse.Namespace) -> Path:
    """Sweep every prompt over the timesteps that are not in the table yet; the stem of the files."""
    configs = {
        name: load_config(args.config_file, args.opts, {"PROMPT.TYPE": name, "TEST.SPLIT": args.split})
        for name in args.prompts
    }
    for cfg in configs.values():
        check_config(cfg, training=False)
    for timestep in args.timesteps:
        check_config(load_config(args.config_file, [*args.opts, "TEST.TIMESTEP", str(timestep)]), training=False)
    name = f"timestep_{cfg.DATASET.NAME}_{args.split}_{cfg.DATASET.CATEGORY}"
    stem = Path(args.output or f"{resolve_path(cfg.OUTPUT_ROOT)}/figure/{name}")
    scores = recall(stem, cfg, args.overwrite)
    for prompt, cfg in configs.items():
        missing = [timestep for timestep in args.timesteps if (prompt, timestep) not in scores]
        for timestep, value in sweep(cfg, missing) if missing else ():
            scores[prompt, timestep] = value
            write_scores(Path(f"{stem}.csv"), scores)
            print(f"{prompt}  t = {timestep}  {value:.2f}", flush=True)
    draw(stem, cfg, args.prompts, scores)
    return stem


@entry_point("the same command goes on from here")
def main() -> int:
    stem = run(parse_args())
    print(f"written: {stem}.csv, .png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
