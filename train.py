"""Learn what a method has to learn: for SD4Match, a prompt for the frozen Stable Diffusion UNet.

    python train.py --config_file config/mini/sd4match_cpm.yaml [KEY VALUE ...]
    accelerate launch --multi_gpu --num_processes 3 train.py --config_file config/spair/sd4match_cpm.yaml

The same command goes on where a stopped run left off. config/default.py explains every KEY.
"""

import argparse
import os
import sys

from config import dump_config, load_config
from engine.check import check_config
from engine.entry import entry_point


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config_file", default="config/spair/sd4match_cpm.yaml", help="YAML file; default: %(default)s"
    )
    parser.add_argument("--overwrite", action="store_true", help="start anew, forgetting an earlier run of this prompt")
    parser.add_argument("--dry_run", action="store_true", help="check and print the merged config, then stop")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings, such as TRAIN.LR 0.02")
    return parser.parse_intermixed_args()


def train(cfg, overwrite: bool) -> int:
    """Run the training that a checked config describes; the exit status of the process."""
    from engine.build import build_accelerator, build_caches, build_method, build_pairs
    from engine.process import StopRequest
    from engine.run import TrainingRun

    accelerator = build_accelerator(cfg, cfg.TRAIN.ACCUMULATION)
    trn, val = build_pairs(cfg, cfg.TRAIN.SPLIT), build_pairs(cfg, cfg.VAL.SPLIT, cfg.VAL.PAIRS)
    method = build_method(cfg, accelerator.device, trn.benchmark.image_categories, training=True)
    run = TrainingRun(cfg, accelerator, method, trn, val, overwrite)  # what it refuses, it refuses before the caches
    build_caches(cfg, (trn, val), method, accelerator)  # what is computed once per image

    with StopRequest().listening() as stop:
        while not run.done:
            for batch, seeds in run.batches():  # up to the next validation
                with accelerator.accumulate():
                    losses = method.loss(batch, seeds)  # (B,)
                    stepped = run.learn(losses)
                if stepped and stop.agreed(accelerator):
                    run.save()
                    return 128 + (stop.signal or 15)
            run.save()
            with stop.everything_saved():
                run.validate(val)
            run.save()
    run.finish()
    return 0


@entry_point("the caches and checkpoints written so far are kept")
def main() -> int:
    args = parse_args()
    cfg = check_config(load_config(args.config_file, args.opts), training=True)
    if int(os.environ.get("RANK", 0)) == 0:
        print(dump_config(cfg))
    return 0 if args.dry_run else train(cfg, args.overwrite)


if __name__ == "__main__":
    sys.exit(main())
