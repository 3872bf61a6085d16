"""PCK of prompts over the diffusion timestep: a CSV and a picture.

    python script/sweep_timestep.py --config_file config/mini/base.yaml --prompts text empty --timesteps 0 50 261

Choose a timestep on validation pairs (--split val, the default), not on the test split.
"""

import argparse
import csv
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import check_config, load_config, resolve_path  # noqa: E402


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config_file", help="YAML file; default: config/default.py as it is")
    parser.add_argument("--prompts", nargs="+", required=True, help="`text`, `empty`, or names of learned prompts")
    parser.add_argument("--timesteps", nargs="+", type=int, default=[0, 50, 100, 150, 200, 261, 300, 400, 500])
    parser.add_argument("--split", default="val")
    parser.add_argument("--output", help="path of the files without suffix; default: OUTPUT_ROOT/figure/timestep_...")
    parser.add_argument("--opts", nargs="*", default=[], metavar="KEY VALUE", help="settings, as given to test.py")
    return parser.parse_args()


def sweep(cfg, timesteps: list[int]) -> dict[int, float]:
    """Timestep -> PCK in percent of the picture's localiser and alpha (config section EVAL)."""
    from utils.build import build_test
    from utils.pck import alpha_key
    from utils.report import evaluate_split

    accelerator, pairs, matcher = build_test(cfg)
    scores = {}
    for timestep in timesteps:
        summary, _ = evaluate_split(cfg, matcher.at(timestep, cfg.TEST.ENSEMBLE), pairs, accelerator)
        row = summary["pck"][cfg.EVAL.PICTURE_LOCALISER][alpha_key(cfg.EVAL.PICTURE_ALPHA)]
        scores[timestep] = 100 * row["all"]
        print(f"{cfg.PROMPT.TYPE}  t = {timestep}  {scores[timestep]:.2f}", flush=True)
    return scores


def main() -> int:
    args = parse_args()
    from utils import atomic_path
    from utils.draw import save_figure
    from utils.errors import USER_ERRORS, explain
    from utils.plot import draw_curves

    try:
        curves = {}
        for name in args.prompts:
            cfg = load_config(args.config_file, args.opts, {"PROMPT.TYPE": name, "TEST.SPLIT": args.split})
            for timestep in args.timesteps:
                check_config(load_config(args.config_file, [*args.opts, "TEST.TIMESTEP", str(timestep)]), False)
            check_config(cfg, training=False)
            curves[name] = sweep(cfg, args.timesteps)
    except USER_ERRORS as error:
        print(f"sweep_timestep.py: {explain(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    stem = args.output or (
        f"{resolve_path(cfg.OUTPUT_ROOT)}/figure/timestep_{cfg.DATASET.NAME}_{args.split}_{cfg.DATASET.CATEGORY}"
    )
    with atomic_path(f"{stem}.csv") as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "timestep", "pck"])
        writer.writerows([name, t, f"{value:.4f}"] for name, row in curves.items() for t, value in row.items())
    pairs = f"{cfg.DATASET.NAME} {args.split} {cfg.DATASET.CATEGORY}"
    measure = f"PCK@{cfg.EVAL.PICTURE_ALPHA:g}, {cfg.EVAL.PICTURE_LOCALISER}, {pairs} (%)"
    save_figure(f"{stem}.png", draw_curves(curves, "timestep", measure))
    print(f"written: {stem}.csv, .png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
