"""Report the PCK of a prompt on a benchmark.

    python test.py --config_file config/mini/sd4match_cpm.yaml --prompt_type text
    python test.py --dataset spair --prompt_type CPM_spair_sd2-1_Pair-DINO-Feat-G25-C50 --timestep 50 --layer 1
    accelerate launch --num_processes 3 test.py --dataset spair --prompt_type text

--prompt_type is `text`, `empty`, or the name of a folder in asset/sd4match/prompt.
config/default.py explains every KEY.
"""

import argparse
import os
import sys

from config import dump_config, load_config
from engine.check import check_config
from engine.entry import entry_point

FLAGS = {  # flag -> the config key it sets
    "dataset": "DATASET.NAME",
    "split": "TEST.SPLIT",
    "category": "DATASET.CATEGORY",
    "prompt_type": "PROMPT.TYPE",
    "timestep": "TEST.TIMESTEP",
    "layer": "METHOD.LAYER",
    "batch_size": "EVAL.BATCH_SIZE",
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config_file", help="YAML file; default: config/default.py as it is")
    for flag, key in FLAGS.items():
        kind = int if flag in ("timestep", "layer", "batch_size") else str
        parser.add_argument(f"--{flag}", type=kind, help=f"sets {key}")
    parser.add_argument("--quiet", action="store_true", help="do not print the merged config, which lies by the result")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings, such as TEST.ENSEMBLE 1")
    return parser.parse_intermixed_args()


def test(cfg) -> None:
    """Evaluate the configured method; print its tables and write them beside its weights."""
    from engine.build import build_test
    from engine.report import report
    from engine.task import task_of

    accelerator, pairs, method = build_test(cfg)
    summary, scores = task_of(cfg).evaluate(cfg, method, pairs, accelerator)
    if accelerator.is_main_process:
        report(cfg, summary, scores, method, pairs, accelerator.device)
    accelerator.end_training()


@entry_point("the caches written so far are kept")
def main() -> int:
    args = parse_args()
    overrides = {key: getattr(args, flag) for flag, key in FLAGS.items()}
    cfg = check_config(load_config(args.config_file, args.opts, overrides), training=False)
    if int(os.environ.get("RANK", 0)) == 0 and not args.quiet:
        print(dump_config(cfg))
    test(cfg)
    return 0


if __name__ == "__main__":
    sys.exit(main())
