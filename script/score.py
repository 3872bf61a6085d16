"""Score predictions that any method, of this project or not, has made on a benchmark.

    python script/score.py --template rows.csv --config_file config/spair/base.yaml     # all pairs, without x and y
    python script/score.py rows.csv --config_file config/spair/base.yaml EVAL.PROTOCOL original
    python script/score.py results.pkl --dataset ap10k --split test EVAL.INEQUALITY "<" # of GeoAware-SC's code
    python script/score.py A_predictions.csv --localiser nn --release results.json      # write them in its format

A row is a keypoint: pair_id, keypoint_id (or keypoint_index, from 0), x, y in pixels of the target image; CSV, or JSON
Lines with these keys. Tables, scores and predictions go where those of test.py go: script/analyse.py,
script/view_results.py and script/compare.py read them. config/default.py explains every KEY.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.argument import file_name
from engine.entry import entry_point


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("file", nargs="?", type=Path, help="predictions: .csv, .jsonl, or .pkl and .json of GeoAware-SC's code")
    add("--config_file", help="YAML file; default: config/default.py as it is")
    add("--dataset", help="sets DATASET.NAME")
    add("--split", help="sets TEST.SPLIT")
    add("--name", type=file_name, help="what the results are called; default: the file's name")
    add("--localiser", default="", help="of a _predictions.csv of test.py: which of its predictions")
    text = "name of its column in tables: one of a method's, such as kernelsoftmax, so that analyse.py and "
    text += "view_results.py show both; default: %(default)s"
    add("--as", dest="called", type=file_name, default="prediction", metavar="LOCALISER", help=text)
    add("--template", type=Path, metavar="FILE", help="write this file and end")
    add("--release", type=Path, metavar="FILE", help="also write the predictions as JSON in GeoAware-SC's format")
    add("opts", nargs="*", metavar="KEY VALUE", help="settings, such as EVAL.BY point")
    args = parser.parse_intermixed_args()
    if args.template and args.file:  # what stands first is a setting
        args.opts, args.file = [str(args.file), *args.opts], None
    if not (args.file or args.template):
        parser.error("name a file of predictions, or --template FILE")
    return args


@entry_point(mendable=(ValueError,))
def main() -> None:
    args = parse_args()
    from config import ConfigError, load_config
    from dataset import BENCHMARKS
    from engine.build import build_pairs
    from engine.check import check_config
    from engine.predictions import read_points, to_release, write_template
    from engine.report import report_points
    from utils.store import write_text

    cfg = load_config(args.config_file, args.opts, {"DATASET.NAME": args.dataset, "TEST.SPLIT": args.split})
    check_config(cfg, training=False)
    if BENCHMARKS[cfg.DATASET.NAME].task != "correspondence":
        raise ConfigError(f"DATASET.NAME {cfg.DATASET.NAME} has no keypoints to predict")
    pairs = build_pairs(cfg, cfg.TEST.SPLIT)
    if args.template and args.template.exists():
        raise ConfigError(f"--template {args.template} is there already, and would be lost; choose another name")
    if args.release and args.release.resolve() == args.file.resolve():
        raise ConfigError(f"--release {args.release} is the file of predictions, which would be lost")
    if args.template:
        print(f"written: {args.template}, {write_template(args.template, pairs.benchmark)} rows")
        return
    points = read_points(args.file, pairs.benchmark, args.localiser)
    report_points(cfg, points, pairs, args.file, args.name or args.file.stem, args.called)
    if args.release:
        write_text(args.release, json.dumps(to_release(points, pairs.benchmark)))
        print(f"written: {args.release}")


if __name__ == "__main__":
    sys.exit(main())
